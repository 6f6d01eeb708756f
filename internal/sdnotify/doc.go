// SPDX-License-Identifier: Apache-2.0

// Package sdnotify speaks the protocols of sd_notify(3) and sd_listen_fds(3) with the
// service manager that started this process: it reports the state of the service, feeds
// the watchdog, and stores open files with the manager, which passes them to the next
// process of the service, even if this one is killed.
//
// github.com/coreos/go-systemd sends a message (daemon.SdNotify), but it cannot attach a
// file (FDSTORE=1) or wait until the manager has read what was sent (BARRIER=1), and
// netbackd depends on both to keep TAPs in a restart.
//
// The package knows the two protocols. It must not know the meaning of messages or files.
// Without a service manager the Notifier is nil, and its methods do nothing.
package sdnotify
