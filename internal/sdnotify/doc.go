// SPDX-License-Identifier: Apache-2.0

// Package sdnotify talks to the service manager that started this process, in
// the protocols of sd_notify(3) and sd_listen_fds(3): it says how the service
// is, feeds the watchdog, and leaves open files with the manager, which hands
// them to the next process of the service however this one ended.
//
// It knows the two protocols. It must not know what is notified or what the
// files are. Without a service manager a nil [Notifier] does the same to no
// effect, so that nobody has to ask.
package sdnotify
