// SPDX-License-Identifier: Apache-2.0

package netengine

import (
	"github.com/netbackd/netbackd/internal/procs"
	"github.com/netbackd/netbackd/internal/procwire"
)

// Messages of the broker to a packet process, and their bodies. A link is named by a number
// that the broker gives it.
const (
	kindSetup     procwire.Kind = 1 + iota // setup, with the devices -> ready
	kindOpen                               // link, domid, name, with memory of counters
	kindEnd                                // link
	kindRate                               // link, bytes, interval
	kindWeight                             // link, weight
	kindPrepare                            // link, rings, with event channels and journals -> found
	kindStart                              // link, serving, with TAP queues and devices of the control ring ->
	kindClose                              // link, ending ->
	kindMcast                              // link, on
	kindHeadroom                           // link, bytes ->
	kindPause                              // link, on ->
	kindStatus                             // link -> status
	kindRings                              // link -> renewed
	kindChannels                           // link, with event channels -> renewed
	kindRingStamp                          // link, gref -> stamp
	kindPing                               // -> health
	kindOwnDomid                           // domid
)

// Messages of a packet process to the broker.
const (
	kindNotice procwire.Kind = 64 + iota // link, connection, notice
	kindStore                            // link, connection, record ->
	kindSteer                            // link, connection, steering ->
)

// Bounds of messages.
const (
	maxQueues   = 64 // of a vif of a packet process; --max-queues is at most that
	maxName     = 64
	maxRecord   = 56 << 10
	maxMcast    = 64
	eventFiles  = 2 // descriptors of an event channel device, at most
	maxInterval = 1 << 40
)

// toProcess are the rules of the broker's messages.
func toProcess() procwire.Rules {
	small := procwire.Size{Body: 256}
	ask := func(s, a procwire.Size) procwire.Rule { return procwire.Rule{Ask: s, Answer: a} }
	done := procwire.Size{Body: procs.AnswerSize}
	return procwire.Rules{
		kindSetup:     ask(procwire.Size{Body: 4096, Files: 1, MaxFiles: 2}, procwire.Size{Body: procs.MaxJSON}),
		kindOpen:      {Notice: true, Ask: procwire.Size{Body: 256, Files: 1}},
		kindEnd:       {Notice: true, Ask: small},
		kindRate:      {Notice: true, Ask: small},
		kindWeight:    {Notice: true, Ask: small},
		kindPrepare:   ask(procwire.Size{Body: 4096, Files: 1, MaxFiles: maxQueues * (eventFiles + 1)}, procwire.Size{Body: procs.AnswerSize + 64}),
		kindStart:     ask(procwire.Size{Body: maxRecord + 2048, Files: 1, MaxFiles: maxQueues + 1 + eventFiles}, done),
		kindClose:     ask(small, done),
		kindMcast:     {Notice: true, Ask: small},
		kindHeadroom:  ask(small, done),
		kindPause:     ask(small, done),
		kindStatus:    ask(small, procwire.Size{Body: procwire.MaxBody}),
		kindRings:     ask(small, done),
		kindChannels:  ask(procwire.Size{Body: 256, Files: 1, MaxFiles: eventFiles}, done),
		kindRingStamp: ask(small, procwire.Size{Body: procs.AnswerSize + 64}),
		kindPing:      ask(small, procwire.Size{Body: procs.MaxJSON}),
		kindOwnDomid:  {Notice: true, Ask: small},
	}
}

// toBroker are the rules of the messages of a packet process, which may be in the hands of a
// guest.
func toBroker() procwire.Rules {
	done := procwire.Size{Body: procs.AnswerSize}
	return procwire.Rules{
		kindNotice: {Notice: true, Ask: procwire.Size{Body: procs.AnswerSize + 64}},
		kindStore:  {Ask: procwire.Size{Body: maxRecord + 64}, Answer: done},
		kindSteer:  {Ask: procwire.Size{Body: 1024}, Answer: done},
	}
}
