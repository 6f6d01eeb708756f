// SPDX-License-Identifier: Apache-2.0

package vbd

import (
	"strconv"

	"github.com/netbackd/netbackd/internal/disk"
	"github.com/netbackd/netbackd/pkg/blkif"
)

// Keys that describe the disk, which the backend publishes when it connects.
const (
	flushKey        = "feature-flush-cache"
	barrierKey      = "feature-barrier"
	discardKey      = "feature-discard"
	granularityKey  = "discard-granularity"
	alignmentKey    = "discard-alignment"
	secureKey       = "discard-secure"
	persistentKey   = "feature-persistent"
	sectorsKey      = "sectors"
	infoKey         = "info"
	sectorSizeKey   = "sector-size"
	physicalSizeKey = "physical-sector-size"
)

var diskKeys = [...]string{
	flushKey, barrierKey, discardKey, granularityKey, alignmentKey, secureKey,
	persistentKey, sectorsKey, infoKey, sectorSizeKey, physicalSizeKey,
}

// diskNodes returns the nodes that describe the disk to the frontend. All are written each
// time: another back end, or an earlier connection, may have left others.
func diskNodes(d *disk.Disk, t *target, persistent bool) []node {
	discard := d.Discard()
	can := discard.OK() && !t.noDiscard && !t.readOnly()
	list := []node{
		{flushKey, bit(!t.readOnly())},
		{barrierKey, bit(!t.readOnly())},
		{discardKey, bit(can)},
		{granularityKey, ""}, {alignmentKey, ""}, {secureKey, ""},
		{persistentKey, bit(persistent)},
		{sectorsKey, sectorsText(d)},
		{infoKey, strconv.Itoa(info(t))},
		{sectorSizeKey, strconv.Itoa(d.SectorSize())},
		{physicalSizeKey, strconv.Itoa(d.PhysicalSectorSize())},
	}
	if can {
		list[3].value = strconv.FormatUint(uint64(discard.Granularity), 10)
		list[4].value = strconv.FormatUint(uint64(discard.Alignment), 10)
		list[5].value = bit(discard.Secure)
	}
	return list
}

func info(t *target) (n int) {
	if t.cdrom() {
		n |= blkif.InfoCDROM
	}
	if t.removable {
		n |= blkif.InfoRemovable
	}
	if t.readOnly() {
		n |= blkif.InfoReadOnly
	}
	return n
}

// sectorsText returns the value of the node sectors.
func sectorsText(d *disk.Disk) string { return strconv.FormatUint(d.Sectors(), 10) }

func bit(v bool) string {
	if v {
		return "1"
	}
	return "0"
}
