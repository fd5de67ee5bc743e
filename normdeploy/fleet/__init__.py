"""Many exports from one file: checkpoints × precisions × targets, each in a process of its own."""
