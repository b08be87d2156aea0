#!/bin/bash
# launch/image.sh --image REGION-docker.pkg.dev/PROJECT/REPOSITORY/vpp_jax:TAG [--dry_run]
#
# Builds the image of this checkout (launch/Dockerfile) and pushes it to a registry that the TPU hosts can read.
source "$(dirname "$0")/common.sh"
read_options image -- "$@"
need image
run docker build --file "$(dirname "$0")/Dockerfile" --tag "$image" "$(dirname "$0")/.."
run docker push "$image"
