# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# Functions for scripts that take programs from Debian's packages without installing them.
# apt fetches and verifies the packages with a separate state. The script sets $name, which
# begins its messages.

say() { printf '%s: %s\n' "$name" "$*"; }
missing() {
	say "$*" >&2
	exit 77
}

# apt_state DIR KEYS SUITE... makes a separate state of apt, with these sources.
apt_state() {
	local apt=$1 keys=$2 mirror=${DEBIAN_MIRROR:-http://deb.debian.org} source
	shift 2
	rm -rf "$apt"
	mkdir -p "$apt"/{state/lists,cache/archives}/partial "$apt/none"
	: >"$apt/status"
	for source; do
		echo "deb [arch=amd64 signed-by=$keys] $mirror/$source main"
	done >"$apt/sources.list"
	# apt reads this after the machine's own configuration: it keeps the machine's
	# proxies, and not its hooks and preferences. With an empty status file apt fetches
	# every dependency, even those installed here.
	cat >"$apt/apt.conf" <<-END
		#clear APT::Update;
		#clear DPkg;
		#clear Dir::Cache;
		APT::Update::Error-Mode "any";
		APT::Architecture "amd64";
		APT::Architectures { "amd64"; };
		APT::Install-Recommends "false";
		APT::Sandbox::User "";
		Acquire::Languages "none";
		Acquire::Retries "3";
		Debug::NoLocking "true";
		Dir::State "$apt/state";
		Dir::State::status "$apt/status";
		Dir::Cache "$apt/cache";
		Dir::Cache::archives "archives";
		Dir::Etc::SourceList "$apt/sources.list";
		Dir::Etc::SourceParts "$apt/none";
		Dir::Etc::Preferences "$apt/none/preferences";
		Dir::Etc::PreferencesParts "$apt/none";
	END
	try_apt "read $mirror" "$apt" apt-get -qq update
}

# try_apt WHAT STATE COMMAND... runs a command of apt. Its output is STATE/log.
try_apt() {
	local what=$1 apt=$2
	shift 2
	APT_CONFIG=$apt/apt.conf "$@" >"$apt/log" 2>&1 ||
		missing "apt cannot $what: $(grep -m1 '^E:' "$apt/log" || tail -n1 "$apt/log")"
}

# extract DIR DEB... unpacks packages into a root whose /bin is in /usr.
extract() {
	local d=$1 deb link
	shift
	mkdir -p "$d"/usr/{bin,sbin,lib,lib64}
	for link in bin sbin lib lib64; do ln -s "usr/$link" "$d/$link"; done
	for deb; do
		dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$d" --keep-directory-symlink --no-same-owner \
			--exclude='./usr/share/doc/*' --exclude='./usr/share/man/*' --exclude='./usr/share/locale/*'
	done
}
