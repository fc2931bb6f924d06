#!/usr/bin/env bash
# Trains, evaluates and exports the two bundled models again: bash benchmarks/bundled/train.sh DATA RUNS
# DATA holds splits/mammo_full.csv, the images and weights/ (see shared/data/README.md). On two CPU cores: about 3 hours.
# Interrupted, it goes on where it stopped. Fold 0 is evaluated once, after everything is frozen.
set -euo pipefail
data=$1 runs=$2
here=$(cd "$(dirname "$0")" && pwd)
bundles=$here/../../runtime/mammo_runtime/bundles
index=(--index "$data/splits/mammo_full.csv" --root "$data")

# The training loop allocates and frees large blocks: let glibc keep them (1.2 times faster on a CPU).
export MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=4294967296 MALLOC_TOP_PAD_=268435456

mammo-train fit "${index[@]}" --input roi --name mass-roi --config "$here/mass-roi.json" \
    --encoder-weights "$data/weights/mobilenet_v2_imagenet_from_quant_fp16.pt" -o "$runs/mass-roi"
mammo-train fit "${index[@]}" --input full --size 384x256 --name mass-full --config "$here/mass-full.json" \
    --init "$runs/mass-roi" -o "$runs/mass-full"
for name in mass-roi mass-full; do
    mammo-train evaluate "$runs/$name" "${index[@]}" --fold 0
    mammo-export "$runs/$name" "${index[@]}" -o "$bundles/$name" --overwrite --no-pictures
done
