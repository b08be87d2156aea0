#!/bin/bash
# launch/image.sh --image REGION-docker.pkg.dev/PROJECT/REPOSITORY/vpp_jax:TAG [--dry_run]
#
# Builds the image of this checkout (launch/Dockerfile), with its commit in it, and pushes it to a registry that the TPU hosts can read.
source "$(dirname "$0")/common.sh"
read_options image -- "$@"
need image
root="$(cd "$(dirname "$0")/.." && pwd)"
revision="$(git -C "$root" rev-parse HEAD)$(git -C "$root" diff --quiet HEAD || echo -dirty)"
run docker build --file "$(dirname "$0")/Dockerfile" --build-arg "GIT_REVISION=$revision" --tag "$image" "$(dirname "$0")/.."
run docker push "$image"
