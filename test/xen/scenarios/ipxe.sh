# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# threads: single
#
# A frontend other than Linux's: iPXE in an HVM guest, booted by firmware from a CD. It gets
# its address and a script by DHCP and HTTP, then closes its interface, opens it, and gets an
# address and a file, twice. The files arrive complete, and netbackd connects it each time.

fetched() { grep -c "url:/$1" /tmp/httpd.log; }

start_netbackd
make_bridge
mkdir /tmp/www
sh -c "$CHUNK"
mv /tmp/chunk /tmp/www/
again="ifclose net0
dhcp net0 || exit
imgfetch http://$DOM0/chunk || exit
imgstat
imgfree chunk"
printf '%s\n' '#!ipxe' "$again" "$again" "imgfetch http://$DOM0/done" 'sleep 1000' >/tmp/www/boot.ipxe
: >/tmp/www/done
busybox httpd -f -vv -h /tmp/www 2>/tmp/httpd.log &
servers=$!
printf '%s\n' "start 10.0.0.100" "end 10.0.0.110" "interface xenbr0" "lease_file /tmp/leases" \
	"boot_file http://$DOM0/boot.ipxe" >/tmp/udhcpd.conf
busybox udhcpd -f /tmp/udhcpd.conf 2>/tmp/udhcpd.log &
servers+=" $!"
cp -r /host/hvm /tmp/ # the share is slow
cat >/tmp/ipxe.cfg <<-END
	name = "ipxe"
	type = "hvm"
	memory = 64
	vga = "none"
	vnc = 0
	boot = "d"
	disk = [ '/tmp/hvm/ipxe.iso,raw,hdc,cdrom' ]
	device_model_version = "qemu-xen"
	device_model_override = "/tmp/hvm/qemu"
	firmware_override = "/tmp/hvm/hvmloader"
	bios = "seabios"
	bios_path_override = "/tmp/hvm/share/bios-256k.bin"
	vif = [ 'mac=$(mac 99),bridge=xenbr0,type=vif' ]
END
within 240000 "xl create ipxe" xl create -q /tmp/ipxe.cfg
DOMID[ipxe]=$(xl domid ipxe)
connects ipxe
eventually 600 "iPXE has fetched everything" fetched "done"
cat /tmp/httpd.log
same "how often iPXE fetched the file" "$(fetched chunk)" 2
same "how often iPXE connected" "$(grep -c "	connected.*\"$(vif ipxe)\"" /tmp/netbackd.log)" 3
netbackd list
# shellcheck disable=SC2086 # a list
kill $servers
