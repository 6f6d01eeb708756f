# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# xenstored: oxenstored
# kernel: trixie
#
# The scenario driver-domain with the other xenstored, which answers ENOENT for nodes below
# directories that the driver domain may not read.

# shellcheck source=/dev/null
. /host/scenarios/driver-domain.sh
