// SPDX-License-Identifier: Apache-2.0

package store

import "testing"

// scripts test one rule each. They use only the wire protocol, so they can also run against
// a xenstored of Xen.
var scripts = []struct{ name, lines string }{
	{"a fresh store holds what xenstored makes", `
		dom0 DIRECTORY / | -> EINVAL
		dom0 DIRECTORY /| -> tool|local|
		dom0 DIRECTORY /tool| -> xenstored|
		dom0 DIRECTORY /tool/xenstored| ->
		dom0 GET_PERMS /| -> n0|
		dom0 GET_PERMS /tool/xenstored| -> n0|
		dom0 DIRECTORY /local/domain| -> 5|6|
	`},

	// Writing, reading, removing.

	{"what is written is read, with any bytes", `
		dom0 WRITE /a|1 -> OK|
		dom0 READ /a| -> 1
		dom0 WRITE /a| -> OK|
		dom0 READ /a| ->
		dom0 WRITE /a|x|y||z -> OK|
		dom0 READ /a| -> x|y||z
	`},
	{"a write makes missing parents with empty values", `
		dom0 WRITE /a/b/c/d|1 -> OK|
		dom0 READ /a/b| ->
		dom0 DIRECTORY /a| -> b|
		dom0 DIRECTORY /a/b/c| -> d|
		dom0 READ /a/b/c/d| -> 1
	`},
	{"a directory lists its children by age", `
		dom0 WRITE /a/z|1 -> OK|
		dom0 WRITE /a/y|1 -> OK|
		dom0 WRITE /a/yy|1 -> OK|
		dom0 WRITE /a/z|2 -> OK|
		dom0 DIRECTORY /a| -> z|y|yy|
		dom0 RM /a/y| -> OK|
		dom0 DIRECTORY /a| -> z|yy|
		dom0 WRITE /a/y|1 -> OK|
		dom0 DIRECTORY /a| -> z|yy|y|
		dom0 RM /a/z| -> OK|
		dom0 DIRECTORY /a| -> yy|y|
	`},
	{"mkdir makes parents and leaves existing values alone", `
		dom0 WRITE /a|1 -> OK|
		dom0 MKDIR /a| -> OK|
		dom0 READ /a| -> 1
		dom0 MKDIR /a/b/c| -> OK|
		dom0 READ /a/b/c| ->
		dom0 READ /a| -> 1
	`},
	{"removing what is not there is fine unless the parent is not there either", `
		dom0 RM /a| -> OK|
		dom0 RM /a/b| -> ENOENT
		dom0 WRITE /a|1 -> OK|
		dom0 RM /a/b| -> OK|
		dom0 RM /a/b/c| -> ENOENT
	`},
	{"a removed node is gone with all below it", `
		dom0 WRITE /a/b/c|1 -> OK|
		dom0 WRITE /a/d|1 -> OK|
		dom0 RM /a| -> OK|
		dom0 READ /a/b/c| -> ENOENT
		dom0 READ /a/d| -> ENOENT
		dom0 READ /a| -> ENOENT
		dom0 DIRECTORY /| -> tool|local|
		dom0 WRITE /a|1 -> OK|
		dom0 DIRECTORY /a| ->
	`},
	{"the root cannot be removed", `
		dom0 RM /| -> EINVAL
		dom0 READ /| ->
		dom5 RM /| -> EACCES
	`},
	{"what is missing is ENOENT", `
		dom0 READ /a| -> ENOENT
		dom0 DIRECTORY /a| -> ENOENT
		dom0 GET_PERMS /a| -> ENOENT
		dom0 SET_PERMS /a|n0| -> ENOENT
		dom0 DIRECTORY_PART /a|0| -> ENOENT
	`},

	// Paths.

	{"relative paths start at the home of the domain", `
		dom5 WRITE data|1 -> OK|
		dom0 READ /local/domain/5/data| -> 1
		dom5 READ /local/domain/5/data| -> 1
		dom5 DIRECTORY data| ->
		dom0 WRITE x/y|2 -> OK|
		dom0 READ /local/domain/0/x/y| -> 2
		ring0 READ x/y| -> 2
	`},
	{"names are made of letters, digits and four signs", `
		dom0 WRITE /azAZ09-_@|1 -> OK|
		dom0 WRITE /a+b|1 -> EINVAL
		dom0 WRITE /a.b|1 -> EINVAL
		dom0 WRITE /a b|1 -> EINVAL
		dom0 WRITE /a:b|1 -> EINVAL
		dom0 WRITE /ä|1 -> EINVAL
		dom0 READ /a+| -> EINVAL
	`},
	{"no empty components", `
		dom0 WRITE /a/|1 -> EINVAL
		dom0 WRITE //a|1 -> EINVAL
		dom0 WRITE /a//b|1 -> EINVAL
		dom0 WRITE ||1 -> EINVAL
		dom0 READ a/| -> EINVAL
		dom0 MKDIR /a//b| -> EINVAL
		dom0 RM /a/| -> EINVAL
	`},
	{"special paths are no nodes", `
		dom0 READ @releaseDomain| -> EINVAL
		dom0 WRITE @releaseDomain|1 -> EINVAL
		dom0 GET_PERMS @releaseDomain| -> EINVAL
		dom0 RM @releaseDomain| -> EINVAL
	`},
	{"a path has 2048 bytes, below a home as many again", `
		dom0 WRITE /<a*2047>|1 -> OK|
		dom0 WRITE /<a*2048>|1 -> EINVAL
		dom0 WRITE /local/domain/5/<a*2048>|1 -> OK|
		dom0 WRITE /local/domain/5/<a*2049>|1 -> EINVAL
		dom0 WRITE /local/domain/12345/<a*2048>|1 -> OK|
		dom0 WRITE /local/domain/123456/<a*2048>|1 -> EINVAL
		dom0 WRITE /local/domain/x/<a*2048>|1 -> EINVAL
		dom5 READ <a*2048>| -> 1
		dom5 READ <a*2049>| -> EINVAL
	`},

	// Malformed requests.

	{"malformed arguments are EINVAL", `
		dom0 WRITE  -> EINVAL
		dom0 WRITE /a -> EINVAL
		dom0 SET_PERMS /a -> EINVAL
		dom0 SET_PERMS /tool| -> EINVAL
		dom0 SET_PERMS /tool|x0| -> EINVAL
		dom0 SET_PERMS /tool|n| -> EINVAL
		dom0 SET_PERMS /tool|nx| -> EINVAL
		dom0 SET_PERMS /tool|n0|| -> EINVAL
		dom0 WATCH /a| -> EINVAL
		dom0 WATCH /a|t -> EINVAL
		dom0 UNWATCH /a| -> EINVAL
		dom0 DIRECTORY_PART /| -> EINVAL
		dom0 TRANSACTION_END X| -> EINVAL
		dom0 TRANSACTION_END T -> EINVAL
		dom0 INTRODUCE 5|1| -> EINVAL
		dom0 INTRODUCE 5|1|0| -> EINVAL
		dom0 RELEASE 5 -> EINVAL
		dom0 RELEASE 0| -> EINVAL
		dom0 RESUME x| -> EINVAL
		dom0 SET_TARGET 5| -> EINVAL
		dom0 GET_DOMAIN_PATH 5 -> EINVAL
		dom0 IS_DOMAIN_INTRODUCED 5 -> EINVAL
		dom0 CONTROL  -> EINVAL
		dom0 CONTROL no-such-command| -> EINVAL
	`},
	// 4.17 means to, but returns the errno that it had last.
	{"a path alone is one string, terminated, and nothing else", `
		dom0 READ /tool -> EINVAL
		dom0 READ  -> EINVAL
		dom0 READ /tool|| -> EINVAL
		dom0 READ /tool|x -> EINVAL
		dom0 DIRECTORY /tool -> EINVAL
		dom0 GET_PERMS /tool||| -> EINVAL
		dom0 MKDIR /a|b| -> EINVAL
		dom0 RM /tool|b| -> EINVAL
	`},
	{"what follows the last NUL is ignored where strings are counted", `
		dom0 SET_PERMS /tool|n0|junk -> OK|
		dom0 WATCH /tool|t|junk -> OK|
		dom0 UNWATCH /tool|t|junk -> OK|
	`},
	{"numbers are C numbers", `
		dom0 SET_PERMS /tool|n0x0|r05|b6| -> OK|
		dom0 GET_PERMS /tool| -> n0|r5|b6|
		dom0 SET_PERMS /tool|n0|r-1|r70000|w010| -> OK|
		dom0 GET_PERMS /tool| -> n0|r-1|r70000|w8|
		dom0 GET_DOMAIN_PATH 5x| -> /local/domain/5|
		dom0 GET_DOMAIN_PATH x| -> /local/domain/0|
		dom0 GET_DOMAIN_PATH -1| -> /local/domain/4294967295|
	`},
	{"unknown types are ENOSYS", `
		dom0 WATCH_EVENT /a|t| -> ENOSYS
		dom0 ERROR EINVAL| -> ENOSYS
		dom0 RESTRICT 5| -> ENOSYS
		dom0 GET_FEATURE 5| -> ENOSYS
		dom0 SET_FEATURE 5|1| -> ENOSYS
		dom0 GET_QUOTA nodes| -> ENOSYS
		dom0 SET_QUOTA nodes|1| -> ENOSYS
		dom0 65535 | -> ENOSYS
		dom5 RESTRICT 5| -> ENOSYS
	`},

	// Permissions.

	{"new nodes inherit permissions and an unprivileged creator owns them", `
		dom0 WRITE /a|1 -> OK|
		dom0 SET_PERMS /a|n0|b5|r6| -> OK|
		dom0 WRITE /a/b|1 -> OK|
		dom0 GET_PERMS /a/b| -> n0|b5|r6|
		dom5 WRITE /a/c/d|1 -> OK|
		dom0 GET_PERMS /a/c| -> n5|b5|r6|
		dom0 GET_PERMS /a/c/d| -> n5|b5|r6|
		dom0 WRITE /a/c/e|1 -> OK|
		dom0 GET_PERMS /a/c/e| -> n5|b5|r6|
	`},
	{"the first entry names the owner and the rights of everybody else", `
		dom0 WRITE /a|1 -> OK|
		dom0 SET_PERMS /a|r0| -> OK|
		dom5 READ /a| -> 1
		dom5 WRITE /a|2 -> EACCES
		dom0 SET_PERMS /a|w0| -> OK|
		dom5 READ /a| -> EACCES
		dom5 WRITE /a|2 -> OK|
		dom0 SET_PERMS /a|b0| -> OK|
		dom5 READ /a| -> 2
		dom5 WRITE /a|3 -> OK|
		dom0 SET_PERMS /a|n0| -> OK|
		dom5 READ /a| -> EACCES
		dom5 WRITE /a|4 -> EACCES
	`},
	{"an entry of one's own overrides the first one", `
		dom0 WRITE /a|1 -> OK|
		dom0 SET_PERMS /a|b0|n5|r6| -> OK|
		dom5 READ /a| -> EACCES
		dom5 WRITE /a|2 -> EACCES
		dom6 READ /a| -> 1
		dom6 WRITE /a|2 -> EACCES
		dom0 SET_PERMS /a|n0|r5|w5| -> OK|
		dom5 READ /a| -> 1
		dom5 WRITE /a|2 -> EACCES
	`},
	{"an owner may do everything, with any letter", `
		dom0 WRITE /a|1 -> OK|
		dom0 SET_PERMS /a|n5|n5| -> OK|
		dom5 READ /a| -> 1
		dom5 WRITE /a|2 -> OK|
		dom5 SET_PERMS /a|n5|r6| -> OK|
		dom6 READ /a| -> 2
	`},
	{"only the owner and domain 0 set permissions", `
		dom0 WRITE /a|1 -> OK|
		dom0 SET_PERMS /a|b0|b5| -> OK|
		dom5 SET_PERMS /a|b0|b5|r6| -> EACCES
		dom5 SET_PERMS /a|b5| -> EACCES
		dom5 WRITE data|1 -> OK|
		dom6 SET_PERMS /local/domain/5/data|n5|r6| -> EACCES
		dom5 SET_PERMS data|n5|r6| -> OK|
		dom6 READ /local/domain/5/data| -> 1
	`},
	{"an unprivileged owner cannot give a node away", `
		dom5 WRITE data|1 -> OK|
		dom5 SET_PERMS data|n6| -> EPERM
		dom5 SET_PERMS data|n0|b5| -> EPERM
		dom0 SET_PERMS /local/domain/5/data|n6| -> OK|
		dom5 READ data| -> EACCES
		dom6 READ /local/domain/5/data| -> 1
	`},
	{"a node cannot be owned by a domain that does not exist", `
		dom0 WRITE /a|1 -> OK|
		dom0 SET_PERMS /a|n9| -> ENOENT
		dom0 GET_PERMS /a| -> n0|
		xen created 9
		dom0 SET_PERMS /a|n9| -> OK|
		dom0 GET_PERMS /a| -> n9|
	`},
	{"a right granted before the domain exists is not its right", `
		dom0 WRITE /a|1 -> OK|
		dom0 SET_PERMS /a|n0|r9| -> OK|
		dom0 GET_PERMS /a| -> n0|r9|
		xen created 9
		dom0 INTRODUCE 9|1|1| -> OK|
		dom9 READ /a| -> EACCES
		dom0 SET_PERMS /a|n0|r9| -> OK|
		dom9 READ /a| -> 1
	`},
	{"rights of a domain do not pass to the next one of its number", `
		dom0 WRITE /a|1 -> OK|
		dom0 WRITE /b|1 -> OK|
		dom0 SET_PERMS /a|n0|r5| -> OK|
		dom0 SET_PERMS /b|n0|b5| -> OK|
		dom5 READ /a| -> 1
		xen died 5
		xen created 5
		dom0 INTRODUCE 5|1|1| -> OK|
		dom5 READ /a| -> EACCES
		dom0 WRITE /a|2 -> OK|
		dom0 WRITE /b/c|2 -> OK|
		dom5 READ /a| -> EACCES
		dom5 READ /b/c| -> EACCES
		dom0 GET_PERMS /a| -> n0|r5|
	`},
	{"who may do nothing above a node learns nothing about it", `
		dom0 WRITE /a/b|1 -> OK|
		dom5 READ /a/b| -> EACCES
		dom5 READ /a/c| -> EACCES
		dom5 WRITE /a/b|2 -> EACCES
		dom5 MKDIR /a/c| -> EACCES
		dom5 RM /a/b| -> EACCES
		dom5 RM /a/c| -> EACCES
		dom0 SET_PERMS /a|r0| -> OK|
		dom5 READ /a/b| -> EACCES
		dom5 READ /a/c| -> ENOENT
		dom5 READ /a/c/d| -> ENOENT
		dom5 WRITE /a/c|1 -> EACCES
	`},
	{"a node can be reached through parents that are closed", `
		dom0 WRITE /a/b/c|1 -> OK|
		dom0 SET_PERMS /a/b/c|n0|r5| -> OK|
		dom5 READ /a/b/c| -> 1
		dom5 DIRECTORY /a/b| -> EACCES
	`},
	{"a domain works in its own home only", `
		dom5 WRITE a/b/c|1 -> OK|
		dom6 READ /local/domain/5/a| -> EACCES
		dom6 WRITE /local/domain/5/a|2 -> EACCES
		dom5 WRITE /x|1 -> EACCES
		dom5 WRITE /local/domain/7/x|1 -> EACCES
		dom5 DIRECTORY /| -> EACCES
		dom5 RM a| -> OK|
		dom5 READ a/b/c| -> ENOENT
	`},
	{"writing needs no reading", `
		dom0 WRITE /a|1 -> OK|
		dom0 SET_PERMS /a|w0| -> OK|
		dom5 WRITE /a|2 -> OK|
		dom5 WRITE /a/b|1 -> OK|
		dom5 READ /a| -> EACCES
		dom5 RM /a| -> OK|
		dom0 READ /a| -> ENOENT
	`},
	{"a target lends its rights", `
		dom0 WRITE /a|1 -> OK|
		dom0 SET_PERMS /a|n0|b5| -> OK|
		dom5 WRITE data|1 -> OK|
		dom6 READ /a| -> EACCES
		dom6 READ /local/domain/5/data| -> EACCES
		dom0 SET_TARGET 6|5| -> OK|
		dom6 READ /a| -> 1
		dom6 WRITE /local/domain/5/data|2 -> OK|
		dom6 SET_PERMS /local/domain/5/data|n5|r0| -> OK|
		dom6 SET_PERMS /local/domain/5/data|n6| -> EPERM
		dom6 WRITE /local/domain/5/new|2 -> OK|
		dom0 GET_PERMS /local/domain/5/new| -> n6|
		dom5 READ new| -> EACCES
		dom5 READ /local/domain/6| -> EACCES
		dom0 SET_TARGET 6|9| -> ENOENT
		dom0 SET_TARGET 9|6| -> ENOENT
	`},

	// Quotas.

	{"a domain owns 1000 nodes, its home included", `
		dom5 WRITE*200 a/n%d|1 -> OK|
		dom5 WRITE*200 b/n%d|1 -> OK|
		dom5 WRITE*200 c/n%d|1 -> OK|
		dom5 WRITE*200 d/n%d|1 -> OK|
		dom5 WRITE*192 e/n%d|1 -> OK|
		dom5 WRITE f/g/h|1 -> ENOSPC
		dom5 READ f/g| -> ENOENT
		dom5 READ f| -> ENOENT
		dom5 DIRECTORY | -> EINVAL
		dom5 WRITE f/g|1 -> OK|
		dom5 WRITE e/n192|1 -> ENOSPC
		dom5 MKDIR e/n192| -> ENOSPC
		dom5 WRITE e/n0|2 -> OK|
		dom5 RM e/n0| -> OK|
		dom5 WRITE e/n192|1 -> OK|
		dom0 WRITE /local/domain/5/x/y/z|1 -> OK| # domain 0 has no quota, for nodes of any owner
		dom0 GET_PERMS /local/domain/5/x/y/z| -> n5|
		dom5 RM e/n1| -> OK|
		dom5 RM e/n2| -> OK|
		dom5 WRITE e/n193|1 -> ENOSPC
		dom0 SET_PERMS /local/domain/5/x/y/z|n0| -> OK|
		dom5 WRITE e/n193|1 -> ENOSPC
		dom0 SET_PERMS /local/domain/5/x/y|n0| -> OK|
		dom5 WRITE e/n193|1 -> OK|
	`},
	{"a node of a domain is smaller than 2048 bytes, a header of 24 and 8 per permission included", `
		dom5 WRITE a|<x*2015> -> OK|
		dom5 WRITE a|<x*2016> -> ENOSPC
		dom5 WRITE b|<x*2016> -> ENOSPC
		dom5 READ b| -> ENOENT
		dom5 SET_PERMS a|n5|r6| -> ENOSPC
		dom5 GET_PERMS a| -> n5|
		dom0 WRITE /local/domain/5/a|<x*3000> -> OK|
		dom5 READ a| -> <x*3000>
	`},
	{"a list of children counts for the size of the parent", `
		dom5 MKDIR*10 d/<x*199>%d| -> OK|
		dom5 MKDIR d/<x*4>| -> OK|
		dom5 MKDIR d/y| -> ENOSPC
		dom5 READ d/y| -> ENOENT
		dom5 DIRECTORY d/y| -> ENOENT
		dom0 MKDIR /local/domain/5/d/y| -> OK|
		dom5 RM d/y| -> OK|
	`},
	{"a domain sets at most five permissions", `
		dom5 WRITE a|1 -> OK|
		dom5 SET_PERMS a|n5|r0|r0|r0|r0| -> OK|
		dom5 SET_PERMS a|n5|r0|r0|r0|r0|r0| -> ENOSPC
		dom0 SET_PERMS /local/domain/5/a|n5|r0|r0|r0|r0|r0|r0| -> OK|
		dom5 GET_PERMS a| -> n5|r0|r0|r0|r0|r0|r0|
	`},
	{"a domain has 129 watches", `
		dom5 WATCH*129 a|t%d| -> OK|
		dom5 WATCH a|t129| -> E2BIG
		dom5 WATCH a|t0| -> EEXIST
		dom5 UNWATCH a|t0| -> OK|
		dom5 WATCH a|t129| -> OK|
		dom0 WATCH*300 a|t%d| -> OK|
	`},
	{"a domain has 11 transactions open", `
		dom5 TRANSACTION_START | -> 1|
		dom5 TRANSACTION_START | -> 2|
		dom5 TRANSACTION_START | -> 3|
		dom5 TRANSACTION_START | -> 4|
		dom5 TRANSACTION_START | -> 5|
		dom5 TRANSACTION_START | -> 6|
		dom5 TRANSACTION_START | -> 7|
		dom5 TRANSACTION_START | -> 8|
		dom5 TRANSACTION_START | -> 9|
		dom5 TRANSACTION_START | -> 10|
		dom5 TRANSACTION_START | -> 11|
		dom5 TRANSACTION_START | -> ENOSPC
		dom5#3 TRANSACTION_END F| -> OK|
		dom5 TRANSACTION_START | -> 12|
		dom5 TRANSACTION_START | -> ENOSPC
		dom6 TRANSACTION_START | -> 1|
	`},
	{"a transaction of a domain knows 1024 paths", `
		dom5 TRANSACTION_START | -> 1|
		dom5#1 READ*1022 n%d| -> ENOENT # and the home, asked for permission
		dom5#1 READ m| -> ENOENT
		dom5#1 READ mm| -> ENOSPC
		dom5#1 READ m| -> ENOENT
		dom5#1 TRANSACTION_END T| -> ENOMEM
		dom0 TRANSACTION_START | -> 1|
		dom0#1 READ*1100 n%d| -> ENOENT
		dom0#1 TRANSACTION_END T| -> OK|
	`},
	{"nodes made in a transaction are counted at its end", `
		dom5 WRITE*200 a/n%d|1 -> OK|
		dom5 WRITE*200 b/n%d|1 -> OK|
		dom5 WRITE*200 c/n%d|1 -> OK|
		dom5 WRITE*200 d/n%d|1 -> OK|
		dom5 WRITE*190 e/n%d|1 -> OK|
		dom5 TRANSACTION_START | -> 1|
		dom5#1 WRITE f/g|1 -> OK|
		dom5#1 WRITE f/h|1 -> OK|
		dom5#1 WRITE f/i|1 -> OK|
		dom5#1 WRITE f/j|1 -> OK|
		dom5#1 TRANSACTION_END T| -> ENOSPC
		dom5 READ f| -> ENOENT
		dom5 TRANSACTION_START | -> 2|
		dom5#2 WRITE f/g|1 -> OK|
		dom5#2 WRITE f/h|1 -> OK|
		dom5#2 RM e| -> OK|
		dom5#2 TRANSACTION_END T| -> OK|
		dom5 READ f/h| -> 1
	`},
	{"a request that fails for its size spoils the transaction", `
		dom5 TRANSACTION_START | -> 1|
		dom5#1 WRITE a|<x*2016> -> ENOSPC
		dom5#1 WRITE b|1 -> OK|
		dom5#1 TRANSACTION_END T| -> ENOMEM
		dom5 READ b| -> ENOENT
	`},

	// Watches.

	{"a watch fires at once, behind the reply, whether there is a node or not", `
		dom0 WATCH /a|t| -> OK|
		dom0 EVENTS -> /a|t|
		dom0 WATCH /tool|t| -> OK|
		dom0 EVENTS -> /tool|t|
		dom5 WATCH /not/for/you|t| -> OK|
		dom5 EVENTS -> /not/for/you|t|
	`},
	{"the same path and token twice is EEXIST", `
		dom0 WATCH /a|t| -> OK|
		dom0 WATCH /a|t| -> EEXIST
		dom0 WATCH /a|u| -> OK|
		dom0 WATCH /b|t| -> OK|
		dom0 WATCH /b|| -> OK|
		dom0 WATCH a|t| -> OK|
		dom0 WATCH /local/domain/0/a|t| -> EEXIST
		socket2 WATCH /a|t| -> OK|
	`},
	{"every change at or below a watch is told with its path", `
		dom0 WATCH /a|t| -> OK|
		dom0 EVENTS -> /a|t|
		socket2 WRITE /a|1 -> OK|
		dom0 EVENTS -> /a|t|
		socket2 WRITE /a/b/c|1 -> OK|
		dom0 EVENTS -> /a/b/c|t|
		socket2 MKDIR /a/d| -> OK|
		dom0 EVENTS -> /a/d|t|
		socket2 MKDIR /a/d| -> OK|
		dom0 EVENTS ->
		socket2 WRITE /a/b|1 -> OK|
		dom0 EVENTS -> /a/b|t|
		socket2 SET_PERMS /a/b|n0| -> OK|
		dom0 EVENTS -> /a/b|t|
		socket2 RM /a/d| -> OK|
		dom0 EVENTS -> /a/d|t|
		socket2 RM /a/d| -> OK|
		dom0 EVENTS ->
		socket2 WRITE /ab|1 -> OK|
		dom0 EVENTS ->
	`},
	{"one's own changes are told too, to each watch", `
		dom0 WATCH /a|t| -> OK|
		dom0 WATCH /|u| -> OK|
		dom0 EVENTS -> /a|t| /|u|
		dom0 WRITE /a|1 -> OK|
		dom0 EVENTS -> /a|t| /a|u|
	`},
	{"a change above a watch is not told unless it removes", `
		dom0 WRITE /a/b/c|1 -> OK|
		dom0 WATCH /a/b|t| -> OK|
		dom0 EVENTS -> /a/b|t|
		dom0 WRITE /a|1 -> OK|
		dom0 SET_PERMS /a|n0| -> OK|
		dom0 EVENTS ->
		dom0 RM /a| -> OK|
		dom0 EVENTS -> /a/b|t|
	`},
	{"a removal tells watches above of the top, watches below of themselves, children first", `
		dom0 WRITE /a/b/c|1 -> OK|
		dom0 WRITE /a/b/d|1 -> OK|
		dom0 WATCH /|r| -> OK|
		dom0 WATCH /a|a| -> OK|
		dom0 WATCH /a/b|b| -> OK|
		dom0 WATCH /a/b/c|c| -> OK|
		dom0 WATCH /a/b/c/x|x| -> OK|
		dom0 EVENTS -> /|r| /a|a| /a/b|b| /a/b/c|c| /a/b/c/x|x|
		dom0 RM /a| -> OK|
		dom0 EVENTS -> /a/b/c|c| /a/b|b| /a|r| /a|a|
	`},
	{"a relative watch has relative events", `
		dom5 WATCH a|t| -> OK|
		dom5 WATCH /local/domain/5/a|u| -> OK|
		dom5 EVENTS -> a|t| /local/domain/5/a|u|
		dom0 WRITE /local/domain/5/a/b|1 -> OK|
		dom5 EVENTS -> a/b|t| /local/domain/5/a/b|u|
		dom0 RM /local/domain/5/a| -> OK|
		dom5 EVENTS -> a|t| /local/domain/5/a|u|
		dom5 UNWATCH a|t| -> OK|
		dom5 UNWATCH a|u| -> OK|
		dom0 WATCH x|t| -> OK|
		dom0 EVENTS -> x|t|
		dom0 WRITE x/y|1 -> OK|
		dom0 EVENTS -> x/y|t|
	`},
	{"what a watcher may not see is not told", `
		dom0 WRITE /a/b|1 -> OK|
		dom5 WATCH /a|t| -> OK|
		dom5 EVENTS -> /a|t|
		dom0 WRITE /a/b|2 -> OK|
		dom0 WRITE /a|2 -> OK|
		dom5 EVENTS ->
		dom0 SET_PERMS /a/b|r0| -> OK|
		dom5 EVENTS -> /a/b|t|
		dom0 WRITE /a/b|3 -> OK|
		dom5 EVENTS -> /a/b|t|
	`},
	{"a child of a readable node is told though it cannot be read", `
		dom0 WRITE /a/b|1 -> OK|
		dom0 SET_PERMS /a|r0| -> OK|
		dom5 WATCH /a|t| -> OK|
		dom5 EVENTS -> /a|t|
		dom0 WRITE /a/b|2 -> OK|
		dom5 EVENTS -> /a/b|t|
		dom0 RM /a/b| -> OK|
		dom5 EVENTS -> /a/b|t|
	`},
	{"who loses the right to read is told so", `
		dom0 WRITE /a/b|1 -> OK|
		dom0 SET_PERMS /a/b|r0| -> OK|
		dom5 WATCH /a/b|t| -> OK|
		dom5 EVENTS -> /a/b|t|
		dom0 SET_PERMS /a/b|n0| -> OK|
		dom5 EVENTS -> /a/b|t|
		dom0 WRITE /a/b|2 -> OK|
		dom5 EVENTS ->
	`},
	{"a removed watch is silent", `
		dom0 WATCH /a|t| -> OK|
		dom0 UNWATCH /a|u| -> ENOENT
		dom0 UNWATCH /b|t| -> ENOENT
		dom0 UNWATCH /a|t| -> OK|
		dom0 UNWATCH /a|t| -> ENOENT
		dom0 WRITE /a|1 -> OK|
		dom0 EVENTS -> /a|t|
	`},
	{"a watch wants a valid path", `
		dom0 WATCH /a/|t| -> EINVAL
		dom0 WATCH /a+|t| -> EINVAL
		dom0 WATCH ||t| -> EINVAL
		dom0 WATCH @<x*2047>|t| -> OK|
		dom0 WATCH @<x*2048>|t| -> EINVAL
	`},
	{"4.17 knows no depth", `
		dom0 WATCH /a|t|1| -> EINVAL
	`},
	{"reset takes watches and transactions of one connection", `
		dom5 WATCH data|t| -> OK|
		dom6 WATCH /local/domain/6/data|t| -> OK|
		dom5 TRANSACTION_START | -> 1|
		dom5 RESET_WATCHES | -> OK|
		dom5#1 READ data| -> ENOENT
		dom5#1 TRANSACTION_END T| -> ENOENT
		dom5 WRITE data|1 -> OK|
		dom5 EVENTS -> data|t|
		dom6 EVENTS -> /local/domain/6/data|t|
		dom6 WRITE data|1 -> OK|
		dom6 EVENTS -> /local/domain/6/data|t|
		dom5 WATCH data|t| -> OK|
	`},
	{"the transaction of a watch request is ignored", `
		dom0#77 WATCH /a|t| -> OK|
		dom0#77 UNWATCH /a|t| -> OK|
	`},

	// Special watches.

	{"introducing and releasing domains is told to domain 0", `
		dom0 WATCH @introduceDomain|i| -> OK|
		dom0 WATCH @releaseDomain|r| -> OK|
		dom0 WATCH /|x| -> OK|
		dom0 EVENTS -> @introduceDomain|i| @releaseDomain|r| /|x|
		xen created 7
		dom0 EVENTS ->
		dom0 INTRODUCE 7|1|1| -> OK|
		dom0 EVENTS -> @introduceDomain|i|
		dom0 INTRODUCE 7|1|2| -> OK|
		dom0 EVENTS ->
		dom0 RELEASE 7| -> OK|
		dom0 EVENTS -> @releaseDomain|r|
		dom0 INTRODUCE 7|1|1| -> OK|
		dom0 EVENTS -> @introduceDomain|i|
		xen died 7
		dom0 EVENTS -> @releaseDomain|r|
	`},
	{"a domain that was never introduced dies in silence", `
		dom0 WATCH @releaseDomain|r| -> OK|
		dom0 EVENTS -> @releaseDomain|r|
		xen created 7
		xen died 7
		dom0 EVENTS ->
	`},
	{"a shutdown is told once until the domain is resumed", `
		dom0 WATCH @releaseDomain|r| -> OK|
		dom0 EVENTS -> @releaseDomain|r|
		xen shutdown 5
		dom0 EVENTS -> @releaseDomain|r|
		xen shutdown 5
		dom0 EVENTS ->
		dom0 IS_DOMAIN_INTRODUCED 5| -> T|
		xen created 5
		dom0 RESUME 5| -> OK|
		xen shutdown 5
		dom0 EVENTS -> @releaseDomain|r|
		xen died 5
		dom0 EVENTS -> @releaseDomain|r|
	`},
	{"a guest is told of domains if it was given the right", `
		dom5 WATCH @releaseDomain|r| -> OK|
		dom5 WATCH @introduceDomain|i| -> OK|
		dom5 EVENTS -> @releaseDomain|r| @introduceDomain|i|
		xen created 7
		dom0 INTRODUCE 7|1|1| -> OK|
		dom0 RELEASE 7| -> OK|
		dom5 EVENTS ->
		dom0 SET_PERMS @releaseDomain|n0|r5| -> OK|
		dom0 INTRODUCE 7|1|1| -> OK|
		dom0 RELEASE 7| -> OK|
		dom5 EVENTS -> @releaseDomain|r|
		dom0 SET_PERMS @introduceDomain|r0| -> OK|
		dom0 INTRODUCE 7|1|1| -> OK|
		dom5 EVENTS -> @introduceDomain|i|
	`},
	// 4.17 means to, but returns the errno that it had last, or dies if none.
	{"only domain 0 gives the right to be told of domains, and of nothing else", `
		dom0 SET_PERMS @other|n0|r5| -> EINVAL
		dom0 SET_PERMS @releaseDomain/7|n0|r5| -> EINVAL
		dom5 SET_PERMS @releaseDomain|n0|r5| -> EACCES
		dom5 SET_PERMS @introduceDomain|n5| -> EACCES
	`},
	{"rights to special paths end with their domain", `
		dom0 SET_PERMS @releaseDomain|n6|r5| -> OK|
		dom6 SET_PERMS @releaseDomain|n6|r5| -> OK|
		xen died 5
		xen created 5
		dom0 INTRODUCE 5|1|1| -> OK|
		dom5 WATCH @releaseDomain|r| -> OK|
		dom5 EVENTS -> @releaseDomain|r|
		xen created 7
		dom0 INTRODUCE 7|1|1| -> OK|
		xen died 7
		dom5 EVENTS ->
	`},
	{"any special path may be watched, few ever fire", `
		dom0 WATCH @nonsense|t| -> OK|
		dom0 EVENTS -> @nonsense|t|
		xen died 5
		dom0 EVENTS ->
	`},

	// Transactions.

	{"a transaction alone sees its changes until it commits", `
		dom0 WATCH /a|t| -> OK|
		dom0 EVENTS -> /a|t|
		dom0 TRANSACTION_START | -> 1|
		dom0#1 WRITE /a/b|1 -> OK|
		dom0#1 READ /a/b| -> 1
		dom0#1 DIRECTORY /| -> tool|local|a|
		dom0#1 DIRECTORY /a| -> b|
		dom0 READ /a/b| -> ENOENT
		dom0 DIRECTORY /| -> tool|local|
		socket2 READ /a| -> ENOENT
		dom0 EVENTS ->
		dom0#1 TRANSACTION_END T| -> OK|
		dom0 EVENTS -> /a/b|t|
		socket2 READ /a/b| -> 1
		dom0#1 READ /a| -> ENOENT
	`},
	{"an aborted transaction leaves nothing", `
		dom0 WATCH /|t| -> OK|
		dom0 EVENTS -> /|t|
		dom0 TRANSACTION_START | -> 1|
		dom0#1 WRITE /a|1 -> OK|
		dom0#1 RM /tool| -> OK|
		dom0#1 TRANSACTION_END F| -> OK|
		dom0 DIRECTORY /| -> tool|local|
		dom0 EVENTS ->
	`},
	{"a commit loses against a change of what it read", `
		dom0 WRITE /a|1 -> OK|
		dom0 TRANSACTION_START | -> 1|
		dom0#1 READ /a| -> 1
		socket2 WRITE /a|2 -> OK|
		dom0#1 READ /a| -> 1
		dom0#1 WRITE /b|1 -> OK|
		dom0#1 TRANSACTION_END T| -> EAGAIN
		dom0 READ /b| -> ENOENT
		dom0#1 TRANSACTION_END T| -> ENOENT
	`},
	{"a commit loses against a change of what it wrote", `
		dom0 WRITE /a|1 -> OK|
		dom0 TRANSACTION_START | -> 1|
		dom0#1 WRITE /a|2 -> OK|
		socket2 WRITE /a|3 -> OK|
		dom0#1 TRANSACTION_END T| -> EAGAIN
		dom0 READ /a| -> 3
	`},
	{"a write of the same value is a change", `
		dom0 WRITE /a|1 -> OK|
		dom0 TRANSACTION_START | -> 1|
		dom0#1 READ /a| -> 1
		socket2 WRITE /a|1 -> OK|
		dom0#1 TRANSACTION_END T| -> EAGAIN
	`},
	{"what did not exist when it was read must not exist at the commit", `
		dom0 TRANSACTION_START | -> 1|
		dom0#1 READ /a| -> ENOENT
		socket2 WRITE /a|1 -> OK|
		dom0#1 TRANSACTION_END T| -> EAGAIN
		dom0 TRANSACTION_START | -> 2|
		dom0#2 READ /b| -> ENOENT
		socket2 WRITE /b|1 -> OK|
		socket2 RM /b| -> OK|
		dom0#2 TRANSACTION_END T| -> EAGAIN # the root it asked for permission changed
	`},
	{"a commit loses against a removal", `
		dom0 WRITE /a/b|1 -> OK|
		dom0 TRANSACTION_START | -> 1|
		dom0#1 READ /a/b| -> 1
		socket2 RM /a| -> OK|
		dom0#1 WRITE /a/b|2 -> OK|
		dom0#1 TRANSACTION_END T| -> EAGAIN
		dom0 READ /a| -> ENOENT
	`},
	{"children of one parent conflict", `
		dom0 MKDIR /a| -> OK|
		dom0 TRANSACTION_START | -> 1|
		dom0#1 WRITE /a/b|1 -> OK|
		socket2 WRITE /a/c|1 -> OK|
		dom0#1 TRANSACTION_END T| -> EAGAIN
		dom0 DIRECTORY /a| -> c|
	`},
	{"transactions that do not touch each other both commit", `
		dom0 WRITE /a|1 -> OK|
		dom0 WRITE /b|1 -> OK|
		dom0 TRANSACTION_START | -> 1|
		dom0 TRANSACTION_START | -> 2|
		dom0#1 WRITE /a|2 -> OK|
		dom0#2 WRITE /b|2 -> OK|
		dom0#1 TRANSACTION_END T| -> OK|
		dom0#2 TRANSACTION_END T| -> OK|
		dom0 READ /a| -> 2
		dom0 READ /b| -> 2
	`},
	{"of two transactions that cross the second one loses", `
		dom0 WRITE /a|1 -> OK|
		dom0 WRITE /b|1 -> OK|
		dom0 TRANSACTION_START | -> 1|
		socket2 TRANSACTION_START | -> 1|
		dom0#1 READ /a| -> 1
		socket2#1 READ /b| -> 1
		dom0#1 WRITE /b|2 -> OK|
		socket2#1 WRITE /a|2 -> OK|
		dom0#1 TRANSACTION_END T| -> OK|
		socket2#1 TRANSACTION_END T| -> EAGAIN
		dom0 READ /a| -> 1
		dom0 READ /b| -> 2
	`},
	{"a transaction takes a path as it is when first read, not as it was at the start", `
		dom0 WRITE /a|1 -> OK|
		dom0 TRANSACTION_START | -> 1|
		socket2 WRITE /a|2 -> OK|
		dom0#1 READ /a| -> 2
		dom0#1 TRANSACTION_END T| -> OK|
	`},
	{"a transaction removes and makes anew", `
		dom0 WRITE /a/b|1 -> OK|
		dom0 WATCH /a|t| -> OK|
		dom0 EVENTS -> /a|t|
		dom0 TRANSACTION_START | -> 1|
		dom0#1 RM /a| -> OK|
		dom0#1 READ /a/b| -> ENOENT
		dom0#1 READ /a| -> ENOENT
		dom0#1 RM /a/b| -> ENOENT
		dom0#1 WRITE /a/c|2 -> OK|
		dom0#1 DIRECTORY /a| -> c|
		dom0#1 TRANSACTION_END T| -> OK|
		dom0 DIRECTORY /a| -> c|
		dom0 READ /a/b| -> ENOENT
		dom0 EVENTS -> /a|t| /a/c|t|
	`},
	{"what a transaction made and removed again leaves no trace but the event", `
		dom0 WATCH /a|t| -> OK|
		dom0 EVENTS -> /a|t|
		dom0 TRANSACTION_START | -> 1|
		dom0#1 WRITE /a|1 -> OK|
		dom0#1 RM /a| -> OK|
		dom0#1 TRANSACTION_END T| -> OK|
		dom0 DIRECTORY /| -> tool|local|
		dom0 EVENTS ->
	`},
	{"a removal in a transaction is told below as well", `
		dom0 WRITE /a/b/c|1 -> OK|
		dom0 WATCH /a|a| -> OK|
		dom0 WATCH /a/b/c|c| -> OK|
		dom0 EVENTS -> /a|a| /a/b/c|c|
		dom0 TRANSACTION_START | -> 1|
		dom0#1 RM /a| -> OK|
		dom0#1 TRANSACTION_END T| -> OK|
		dom0 EVENTS -> /a|a| /a/b/c|c|
	`},
	{"a transaction cannot remove a child its copy of the parent does not list", `
		dom0 MKDIR /a| -> OK|
		dom0 TRANSACTION_START | -> 1|
		dom0#1 DIRECTORY /a| ->
		socket2 WRITE /a/b|1 -> OK|
		dom0#1 READ /a/b| -> 1
		dom0#1 RM /a/b| -> EIO
		dom0#1 TRANSACTION_END T| -> EAGAIN
		dom0 READ /a/b| -> 1
	`},
	{"ids are per connection and count from 1", `
		dom0 TRANSACTION_START | -> 1|
		dom0 TRANSACTION_START | -> 2|
		socket2 TRANSACTION_START | -> 1|
		dom0#3 READ /tool| -> ENOENT
		socket2#2 READ /tool| -> ENOENT
		dom0#1 TRANSACTION_END F| -> OK|
		dom0 TRANSACTION_START | -> 3|
	`},
	{"no transaction within a transaction", `
		dom0#1 TRANSACTION_START | -> ENOENT
		dom0 TRANSACTION_START | -> 1|
		dom0#1 TRANSACTION_START | -> EBUSY
		dom0 TRANSACTION_END T| -> ENOENT
		dom0#1 TRANSACTION_END X| -> EINVAL
		dom0#1 TRANSACTION_END T| -> OK|
	`},
	{"permissions hold and are changed in a transaction", `
		dom0 WRITE /a|1 -> OK|
		dom5 WATCH /a|t| -> OK|
		dom5 EVENTS -> /a|t|
		dom0 TRANSACTION_START | -> 1|
		dom0#1 SET_PERMS /a|r0| -> OK|
		dom0#1 GET_PERMS /a| -> r0|
		dom0 GET_PERMS /a| -> n0|
		dom5 READ /a| -> EACCES
		dom0#1 TRANSACTION_END T| -> OK|
		dom5 READ /a| -> 1
		dom5 EVENTS -> /a|t|
		dom5 TRANSACTION_START | -> 1|
		dom5#1 WRITE /a|2 -> EACCES
		dom5#1 WRITE data|2 -> OK|
		dom5#1 TRANSACTION_END T| -> OK|
		dom5 READ data| -> 2
	`},
	{"the state node of a removed device is not resurrected", `
		dom0 WRITE /b/state|4 -> OK|
		dom0 TRANSACTION_START | -> 1|
		dom0#1 READ /b/state| -> 4
		socket2 RM /b| -> OK|
		dom0#1 WRITE /b/state|5 -> OK|
		dom0#1 TRANSACTION_END T| -> EAGAIN
		dom0 TRANSACTION_START | -> 2|
		dom0#2 READ /b/state| -> ENOENT
		dom0#2 TRANSACTION_END F| -> OK|
		dom0 READ /b| -> ENOENT
	`},

	// Domains.

	{"domain management is for domain 0", `
		dom5 INTRODUCE 6|1|1| -> EACCES
		dom5 RELEASE 6| -> EACCES
		dom5 RESUME 6| -> EACCES
		dom5 SET_TARGET 5|6| -> EACCES
		dom5 IS_DOMAIN_INTRODUCED 5| -> EACCES
		dom5 CONTROL help| -> EACCES
		dom5#9 CONTROL help| -> EACCES
		dom5 GET_DOMAIN_PATH 6| -> /local/domain/6|
		ring0 IS_DOMAIN_INTRODUCED 5| -> T|
	`},
	{"only a domain that exists can be introduced", `
		dom0 IS_DOMAIN_INTRODUCED 0| -> T|
		dom0 IS_DOMAIN_INTRODUCED 5| -> T|
		dom0 IS_DOMAIN_INTRODUCED 7| -> F|
		dom0 IS_DOMAIN_INTRODUCED 32752| -> T|
		dom0 INTRODUCE 7|1|1| -> EINVAL
		dom0 IS_DOMAIN_INTRODUCED 7| -> F|
		xen created 7
		dom0 IS_DOMAIN_INTRODUCED 7| -> F|
		dom0 INTRODUCE 7|1|1| -> OK|
		dom0 IS_DOMAIN_INTRODUCED 7| -> T|
		dom0 RELEASE 7| -> OK|
		dom0 IS_DOMAIN_INTRODUCED 7| -> F|
		dom0 RELEASE 7| -> ENOENT
		dom0 RESUME 7| -> ENOENT
	`},
	{"introducing a domain again drops its watches and transactions", `
		dom5 WATCH data|t| -> OK|
		dom5 EVENTS -> data|t|
		dom5 TRANSACTION_START | -> 1|
		dom0 INTRODUCE 5|1|2| -> OK|
		dom5 WRITE data|1 -> OK|
		dom5#1 READ data| -> ENOENT
		dom5 EVENTS ->
	`},
	{"the nodes of a dead domain are gone with all below, of any owner", `
		dom0 WRITE /a/b|1 -> OK|
		dom0 WRITE /a/b/c|1 -> OK|
		dom0 SET_PERMS /a/b|n5| -> OK|
		dom0 WRITE /back|1 -> OK|
		dom0 SET_PERMS /back|n0|r5| -> OK|
		dom5 WRITE device/vif/0/state|4 -> OK|
		dom0 WATCH /|r| -> OK|
		dom0 WATCH /local/domain/5/device/vif/0/state|s| -> OK|
		dom0 WATCH /a/b/c|c| -> OK|
		dom0 WATCH @releaseDomain|x| -> OK|
		dom0 EVENTS -> /|r| /local/domain/5/device/vif/0/state|s| /a/b/c|c| @releaseDomain|x|
		xen died 5
		dom0 EVENTS -> /local/domain/5/device/vif/0/state|s| /local/domain/5|r| /a/b/c|c| /a/b|r| @releaseDomain|x|
		dom0 READ /local/domain/5| -> ENOENT
		dom0 DIRECTORY /a| ->
		dom0 READ /back| -> 1
		dom0 DIRECTORY /local/domain| -> 6|
	`},
	{"the quota of a dead domain is not its successor's", `
		dom5 WRITE*200 a/n%d|1 -> OK|
		dom5 WRITE*200 b/n%d|1 -> OK|
		dom5 WRITE*200 c/n%d|1 -> OK|
		dom5 WRITE*200 d/n%d|1 -> OK|
		dom5 WRITE*190 e/n%d|1 -> OK|
		xen died 5
		xen created 5
		dom0 INTRODUCE 5|1|1| -> OK|
		dom0 MKDIR /local/domain/5| -> OK|
		dom0 SET_PERMS /local/domain/5|n5| -> OK|
		dom5 WRITE*200 a/n%d|1 -> OK|
	`},
	{"a transaction of domain 0 over nodes of a domain that dies is lost", `
		dom5 WRITE data|1 -> OK|
		dom0 TRANSACTION_START | -> 1|
		dom0#1 WRITE /local/domain/5/data|2 -> OK|
		xen died 5
		dom0#1 TRANSACTION_END T| -> EAGAIN
		dom0 TRANSACTION_START | -> 2|
		dom0#2 WRITE /a|2 -> OK|
		dom0#2 TRANSACTION_END T| -> OK|
	`},
	{"a transaction that makes nodes for a domain that dies is lost", `
		dom0 TRANSACTION_START | -> 1|
		dom0#1 WRITE /local/domain/5/new|2 -> OK|
		xen died 5
		dom0#1 TRANSACTION_END T| -> ENOMEM
	`},

	// 4.17 keeps the dead target half alive, and dies when its number returns.
	{"a domain acts for no other when its target has died", `
		dom0 SET_TARGET 6|5| -> OK|
		dom5 WRITE data|1 -> OK|
		xen died 5
		dom0 READ /local/domain/5/data| -> ENOENT
		xen created 5
		dom0 INTRODUCE 5|1|1| -> OK|
		dom0 WRITE /a|1 -> OK|
		dom0 SET_PERMS /a|n5| -> OK|
		dom6 READ /a| -> EACCES
	`},
	// 4.17 removes the root, and with it everything.
	{"a dead domain leaves the root to domain 0", `
		dom0 SET_PERMS /|r5| -> OK|
		xen died 5
		dom0 GET_PERMS /| -> r0|
		dom0 DIRECTORY /local/domain| -> 6|
	`},

	// Long lists.

	{"a list of children that fits no message is E2BIG and read in parts", `
		dom0 MKDIR*9 /d/<x*499>%d| -> OK|
		dom0 DIRECTORY /d| -> E2BIG
		dom0 DIRECTORY_PART /d|4008| -> 30|<x*499>8||
		dom0 DIRECTORY_PART /d|4509| -> 30||
		dom0 DIRECTORY_PART /d|5000| -> 30||
		dom0 DIRECTORY_PART /d|-1| -> 30||
		dom0 DIRECTORY_PART /d|4507| -> 30|8||
		dom0 DIRECTORY_PART /d|x| -> 30|<x*499>0|<x*499>1|<x*499>2|<x*499>3|<x*499>4|<x*499>5|<x*499>6|<x*499>7|
		dom0 DIRECTORY_PART /d|501|junk -> 30|<x*499>1|<x*499>2|<x*499>3|<x*499>4|<x*499>5|<x*499>6|<x*499>7|<x*499>8||
		dom0 DIRECTORY_PART /d|1002| -> 30|<x*499>2|<x*499>3|<x*499>4|<x*499>5|<x*499>6|<x*499>7|<x*499>8||
		dom0 RM /d/<x*499>0| -> OK|
		dom0 DIRECTORY_PART /d|4008| -> 32||
		dom0 DIRECTORY_PART /|0| -> 14|tool|local|d||
		dom5 DIRECTORY_PART /d|0| -> EACCES
		dom5 DIRECTORY_PART /local/domain/5|0| -> 10||
	`},
	{"a part of an empty list is an empty name", `
		dom0 MKDIR /d| -> OK|
		dom0 DIRECTORY_PART /d|0| -> 12||
	`},

	// Control and closing.

	{"control knows help, check, print and quota", `
		dom0 CONTROL check| -> OK|
		dom0 CONTROL check|1| -> EINVAL
		dom0 CONTROL print|hello| -> OK|
		dom0 CONTROL print| -> EINVAL
		dom0 CONTROL help|1| -> EINVAL
		dom0 CONTROL quota|set|watches|1| -> OK|
		dom0 CONTROL quota|set|watches|0| -> EINVAL
		dom0 CONTROL quota|set|nonsense|1| -> EINVAL
		dom0 CONTROL quota|set|watches| -> EINVAL
		dom0 CONTROL quota|5|6| -> EINVAL
		dom0 CONTROL quota|77| -> ENOENT
		dom5 WATCH*2 a|t%d| -> OK|
		dom5 WATCH a|t2| -> E2BIG
	`},
	{"a payload over 4096 bytes ends the connection", `
		dom0 WRITE /a|<x*4093> -> OK|
		dom0 WRITE /a|<x*4094> -> closed
		socket2 READ /a| -> <x*4093>
	`},
}

func TestScripts(t *testing.T) {
	for _, tt := range scripts {
		t.Run(tt.name, func(t *testing.T) { runScript(t, tt.lines) })
	}
}
