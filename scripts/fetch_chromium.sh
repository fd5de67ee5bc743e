#!/usr/bin/env bash
# A headless Chromium for the tests of the report, from npm, into .venv-chromium: its libraries come with it.
set -euo pipefail
cd "$(dirname "$0")/.."
version=153.0.0 folder=.venv-chromium
command -v npm >/dev/null && command -v node >/dev/null || { echo "npm and node are needed to fetch Chromium" >&2; exit 3; }
mkdir -p "$folder" && cd "$folder"
npm pack --silent "@sparticuz/chromium@$version" >/dev/null
tar xzf "sparticuz-chromium-$version.tgz"
node -e '
const fs = require("fs"), zlib = require("zlib");
for (const name of ["chromium", "al2023.tar", "swiftshader.tar"])
  fs.writeFileSync(name, zlib.brotliDecompressSync(fs.readFileSync(`package/bin/${name}.br`)));'
mkdir -p al2023 && tar xf al2023.tar -C al2023 && tar xf swiftshader.tar
chmod +x chromium
rm -rf package ./*.tar ./*.tgz
