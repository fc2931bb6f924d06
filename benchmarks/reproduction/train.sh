#!/usr/bin/env bash
# Reproduces the published systems on the data at hand: bash benchmarks/reproduction/train.sh DATA RUNS
# DATA holds splits/*.csv, the images and weights/ (see shared/data/README.md). Interrupted, it goes on where it stopped.
# Budgets, grids and rates are what two CPU cores without a GPU afford in two hours; each row of reproduction.json says
# what differs from its study. With a GPU leave --scale, --width and --set away and give --budget 120.
set -uo pipefail
data=$1 runs=$2
here=$(cd "$(dirname "$0")" && pwd)
encoder=$data/weights/mobilenet_v2_imagenet_from_quant_fp16.pt
# The training loop allocates and frees large blocks: let glibc keep them (1.2 times faster on a CPU).
export MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=4294967296 MALLOC_TOP_PAD_=268435456

reproduce() { # system, minutes, scale, further options
    local system=$1 minutes=$2 scale=$3
    shift 3
    mammo-train reproduce "$system" --root "$data" -o "$runs" --budget "$minutes" --scale "$scale" "$@"
}
fast() { echo "$here/$1.json"; }

reproduce dense_unet_cropped 4 0.5
reproduce attention_unet_cropped 4 0.5
reproduce mobilenetv2_resunet 3 0.75 --encoder-weights "$encoder" --set "$(fast mobile)"
reproduce busi_unet 6 0.5 --set "$(fast busi)"
reproduce msanet 3 0.5
for system in sam_box medsam_box lite_medsam; do reproduce "$system" 1.5 1 --width tiny --set "$(fast prompted)"; done
reproduce busi_unet_logits 5 0.5
reproduce vgg16_busi 3 0.43 --option head=pool --set "$(fast vgg)"
for system in connected_unet connected_dense_unet_cropped connected_attention_unet_cropped; do
    reproduce "$system" 2 0.5
done
reproduce cobos_dilated_exp3 2 0.35 --set "$(fast cobos)"
reproduce resunet 1.5 0.5 --set "$(fast resunet)"
reproduce mobilenetv2_unet 2 0.75 --encoder-weights "$encoder" --set "$(fast mobile)"
reproduce connected_unetpp_cropped 3 0.5
for system in cobos_vgg_exp1 cobos_vgg_exp2; do reproduce "$system" 1.5 0.35 --set "$(fast cobos)"; done
for system in unet unetpp; do reproduce "$system" 2 0.5; done
reproduce bcss_unet_resnet34 1 1
# The same networks on whole images (attention_unet, dense_unet, connected_…) need hours each for a number worth having.
