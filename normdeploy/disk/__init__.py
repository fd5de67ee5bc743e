"""Everything that is written, or read under a name that someone else may have given.

One rule for what is read: it lies in its own folder, is a plain file, and is opened without following links. One
mechanism for what is written: in a room of its own beside the target, then renamed, whole or not at all.
"""

from normdeploy.disk.held import clear_all_but, held_now, tidy
from normdeploy.disk.read import files_in, is_plain, open_given, open_plain, opened_folder, read_plain, sha256_of
from normdeploy.disk.rooms import WRITTEN, Room, check_place, locked, new_scratch, room, scratch, write_file
from normdeploy.disk.signals import uninterrupted
from normdeploy.disk.words import disk_errors, is_full

__all__ = [
    "WRITTEN", "Room", "check_place", "clear_all_but", "disk_errors", "files_in", "held_now", "is_full", "is_plain",
    "locked", "new_scratch", "open_given", "open_plain", "opened_folder", "read_plain", "room", "scratch",
    "sha256_of", "tidy", "uninterrupted", "write_file",
]  # fmt: skip
