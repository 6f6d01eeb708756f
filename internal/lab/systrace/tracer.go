// SPDX-License-Identifier: Apache-2.0

package systrace

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/netns"
)

// Verdict is the answer to a call. The zero value lets it run.
type Verdict struct {
	// Errno makes the call fail without running.
	Errno unix.Errno
	// Fake makes the call return Return without running. Data, if any, is written to
	// the buffer of a read or recvfrom first; the result is then its length. From is the
	// address of the sender for a recvfrom.
	Fake       bool
	Return     int64
	Data, From []byte
	// Rewrite has a read or recvfrom run by the tracer. It gets what was read, and returns
	// what the program is to get, which may not be longer.
	Rewrite func([]byte) []byte
	// Short has a read, recvfrom or write run by the tracer, of half of its bytes. What is not
	// read stays in the file.
	Short bool
	// Delay is the time before any of this happens.
	Delay time.Duration
	// Kill sends SIGKILL to the process in place of the call.
	Kill bool
}

// runs reports whether the call runs at once and unchanged.
func (v *Verdict) runs() bool {
	return v.Errno == 0 && !v.Fake && v.Rewrite == nil && !v.Short && v.Delay == 0 && !v.Kill
}

// Tracer traces the programs that it launches, also several at the same time.
type Tracer struct {
	numbers []int
	asked   map[int]bool

	mu      sync.Mutex // guards all below; the handler is called with it
	handler func(*Call) Verdict
	sockets map[string]string   // kinds of sockets, by the target of their links
	sent    map[string]string   // the last message sent to a socket
	tgids   map[int]int         // of threads
	symbols map[string]*symbols // by program
}

// New makes a tracer of the calls of these numbers. The handler is called before a call
// runs, for one call at a time.
func New(handler func(*Call) Verdict, numbers ...int) *Tracer {
	t := &Tracer{
		numbers: slices.Clone(numbers),
		asked:   map[int]bool{},
		handler: handler,
		sockets: map[string]string{},
		sent:    map[string]string{},
		tgids:   map[int]int{},
		symbols: map[string]*symbols{},
	}
	for _, n := range numbers {
		t.asked[n] = true
	}
	if !t.asked[unix.SYS_CONNECT] {
		t.numbers = append(t.numbers, unix.SYS_CONNECT) // it tells the kind of a socket
	}
	return t
}

// Handle replaces the handler.
func (t *Tracer) Handle(handler func(*Call) Verdict) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.handler = handler
}

// Launch starts a program whose main calls [Enter], in the caller's namespaces and with
// its life bound to the caller's, and traces it until it and all its children have ended.
func (t *Tracer) Launch(cmd *exec.Cmd) error {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	ours, theirs := pair[0], os.NewFile(uintptr(pair[1]), "tracer")
	defer func() { _ = unix.Close(ours) }()
	if cmd.Env == nil {
		cmd.Env = os.Environ()
	}
	cmd.Env = append(cmd.Env, env+"="+format(3+len(cmd.ExtraFiles), t.numbers))
	cmd.ExtraFiles = append(cmd.ExtraFiles, theirs)
	err = netns.StartHere(cmd)
	if cerr := theirs.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	listener, err := receiveListener(ours)
	if err != nil {
		_ = cmd.Process.Kill() // Wait reports its end
		return fmt.Errorf("%s does not call systrace.Enter, or may not be traced: %w", cmd.Path, err)
	}
	go t.serve(listener)
	return nil
}

// receiveListener waits for the program's listener.
func receiveListener(sock int) (int, error) {
	oob := make([]byte, unix.CmsgSpace(4))
	for {
		n, oobn, _, _, err := unix.Recvmsg(sock, make([]byte, 1), oob, unix.MSG_CMSG_CLOEXEC)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return -1, err
		case n == 0:
			return -1, errors.New("it ended")
		}
		messages, err := unix.ParseSocketControlMessage(oob[:oobn])
		if err != nil || len(messages) != 1 {
			return -1, errors.Join(err, errors.New("no listener"))
		}
		fds, err := unix.ParseUnixRights(&messages[0])
		if err != nil || len(fds) != 1 {
			return -1, errors.Join(err, errors.New("no listener"))
		}
		return fds[0], nil
	}
}

// serve answers the notifications of one program until it has ended.
func (t *Tracer) serve(listener int) {
	var waiting sync.WaitGroup
	defer func() {
		waiting.Wait()
		_ = unix.Close(listener)
	}()
	poll := []unix.PollFd{{Fd: int32(listener), Events: unix.POLLIN}}
	for {
		if _, err := unix.Poll(poll, -1); err != nil && err != unix.EINTR {
			return
		}
		if poll[0].Revents&unix.POLLIN == 0 {
			if poll[0].Revents != 0 {
				return // POLLHUP: no process has the filter any more
			}
			continue
		}
		var n notification
		if receive(listener, &n) != nil {
			continue // the thread has died
		}
		c := &Call{t: t, TID: int(n.pid), Nr: int(n.nr), Args: n.args, IP: n.ip}
		v := t.ask(c)
		if v.runs() {
			answer(listener, &response{id: n.id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE})
			continue
		}
		waiting.Go(func() { c.carryOut(listener, n.id, &v) })
	}
}

// ask returns the handler's verdict.
func (t *Tracer) ask(c *Call) Verdict {
	t.mu.Lock()
	defer t.mu.Unlock()
	c.note()
	if !t.asked[c.Nr] {
		return Verdict{}
	}
	return t.handler(c)
}

// carryOut does what a verdict says, and answers the notification.
func (c *Call) carryOut(listener int, id uint64, v *Verdict) {
	if v.Delay > 0 {
		time.Sleep(v.Delay)
	}
	r := &response{id: id}
	switch {
	case v.Kill:
		_ = unix.Kill(c.TGID(), unix.SIGKILL) // it may have ended
		return
	case v.Errno != 0:
		r.err = -int32(v.Errno)
	case v.Rewrite != nil:
		data, err := c.perform(int(c.Args[2]))
		if err == nil {
			data = v.Rewrite(data)
			err = c.Write(c.Args[1], data)
		}
		if r.val = int64(len(data)); err != nil {
			r.val, r.err = 0, -int32(errnoOf(err))
		}
	case v.Short && (c.Nr == unix.SYS_READ || c.Nr == unix.SYS_RECVFROM):
		data, err := c.perform(max(int(c.Args[2]/2), 1))
		if err == nil {
			err = c.Write(c.Args[1], data)
		}
		if r.val = int64(len(data)); err != nil {
			r.val, r.err = 0, -int32(errnoOf(err))
		}
	case v.Short:
		n, err := c.writeHalf()
		if r.val = int64(n); err != nil {
			r.val, r.err = 0, -int32(errnoOf(err))
		}
	case v.Fake && v.Data != nil:
		if r.val = int64(len(v.Data)); errors.Join(c.Write(c.Args[1], v.Data), c.sender(v.From)) != nil {
			r.val, r.err = 0, -int32(unix.EFAULT)
		}
	case v.Fake:
		r.val = v.Return
	default:
		r.flags = unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE
	}
	answer(listener, r)
}

// answer answers a notification. The thread may have died meanwhile.
func answer(listener int, r *response) { _ = respond(listener, r) }

func errnoOf(err error) unix.Errno {
	if errno := unix.Errno(0); errors.As(err, &errno) {
		return errno
	}
	return unix.EFAULT
}
