#!/usr/bin/env bash
# Headers of ONNX Runtime, which its wheel lacks, from Debian into .venv-examples/onnxruntime/include; the library in
# lib is the wheel's own: its C API takes what was compiled for any version before it.
set -euo pipefail
cd "$(dirname "$0")/.."
package=libonnxruntime-dev_1.21.0+dfsg-1_amd64.deb folder=.venv-examples/onnxruntime
sha256=14f7d959d5deacbcf1504830d4189f91fc67382b399ed9ae9d3aa9c4050ced08
command -v curl >/dev/null && command -v dpkg-deb >/dev/null || { echo "curl and dpkg-deb are needed" >&2; exit 3; }
wheel=$(.venv/bin/python -c 'import onnxruntime, pathlib; print(*pathlib.Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"))')
mkdir -p "$folder/lib" && cd "$folder"
curl -fsS -o "$package" "http://deb.debian.org/debian/pool/main/o/onnxruntime/$package"
echo "$sha256  $package" | sha256sum --check --quiet
dpkg-deb -x "$package" unpacked
rm -rf include && mv unpacked/usr/include include && rm -rf unpacked "$package"
ln -sf "$wheel" lib/libonnxruntime.so.1 && ln -sf libonnxruntime.so.1 lib/libonnxruntime.so
