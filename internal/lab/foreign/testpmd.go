// SPDX-License-Identifier: Apache-2.0

package foreign

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/netbackd/netbackd/internal/lab"
)

// Testpmd configures DPDK's testpmd, which forwards packets from device to device on a
// thread that polls.
type Testpmd struct {
	Name    string   // tells it from others that run
	Devices []string // arguments of --vdev, in the order of the ports
	Mode    string   // txonly, rxonly, macswap, io, ...
	Queues  int      // of each device; 0 is 1
	// CPU is the processor of the thread that forwards, -1 any.
	CPU  int
	Args []string // more arguments of testpmd itself
}

// VirtioUser is the device of a front end of vhost-user. Options follow with a comma each.
func VirtioUser(socket string, queues int, options string) string {
	return fmt.Sprintf("net_virtio_user0,path=%s,queues=%d,queue_size=1024%s", socket, queues, options)
}

// StartTestpmd starts testpmd. It forwards when this returns: ctx bounds the wait.
func (p Programs) StartTestpmd(ctx context.Context, c Testpmd) (*lab.Process, error) {
	cores := "(0,1)"
	if c.CPU >= 0 {
		cores = fmt.Sprintf("0,1@%d", c.CPU)
	}
	args := []string{"--no-huge", "-m", "384", "--no-pci", "--no-telemetry", "--lcores", cores, "--main-lcore", "0", "--file-prefix", c.Name}
	for _, d := range c.Devices {
		args = append(args, "--vdev", d)
	}
	queues := strconv.Itoa(max(c.Queues, 1))
	args = append(args, "--", "--total-num-mbufs=8192", "--auto-start", "--nb-cores=1",
		"--stats-period", "1", "--forward-mode="+c.Mode, "--rxq="+queues, "--txq="+queues)
	t, err := p.start("testpmd "+c.Name, testpmd, append(args, c.Args...)...)
	if err != nil {
		return nil, err
	}
	if err := t.WaitLog(ctx, "Port statistics"); err != nil {
		t.Kill()
		return nil, err
	}
	return t, nil
}

var portLine = regexp.MustCompile(`NIC statistics for port (\d+)[\s\S]*?RX-packets: (\d+)[\s\S]*?TX-packets: (\d+)`)

// NextCounts waits until testpmd prints its counters, which it does each second, and returns
// those of its ports.
func NextCounts(ctx context.Context, t *lab.Process, ports int) ([]Counts, error) {
	const mark, end = "Port statistics ====", "Tx-pps"
	seen := strings.Count(t.Log(), mark)
	for {
		log := t.Log()
		last := log[max(strings.LastIndex(log, mark), 0):]
		if strings.Count(log, mark) > seen && strings.Count(last, end) >= ports {
			var counts []Counts
			for _, m := range portLine.FindAllStringSubmatch(last, -1) {
				received, _ := strconv.ParseUint(m[2], 10, 64)
				sent, _ := strconv.ParseUint(m[3], 10, 64)
				counts = append(counts, Counts{Received: received, Sent: sent})
			}
			return counts, nil
		}
		select {
		case <-time.After(2 * time.Millisecond):
		case <-t.Done():
			return nil, fmt.Errorf("%s ended:\n%s", t.Name, lastLines(log, 20))
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Counts are testpmd's counters of a port.
type Counts struct{ Received, Sent, Dropped uint64 }

var forwardLine = regexp.MustCompile(`(RX|TX)-packets: (\d+)\s+(?:RX|TX)-dropped: (\d+)`)

// StopTestpmd ends testpmd and returns the counters of its ports.
func StopTestpmd(t *lab.Process) ([]Counts, error) {
	t.Signal(syscall.SIGINT)
	select {
	case <-t.Done():
	case <-time.After(20 * time.Second):
		t.Kill()
		return nil, fmt.Errorf("%s did not end when asked to", t.Name)
	}
	return forwarded(t.Log())
}

// forwarded reads the counters that testpmd prints at its end.
func forwarded(log string) (ports []Counts, err error) {
	_, end, ok := strings.Cut(log, "Forward statistics for port")
	if !ok {
		return nil, fmt.Errorf("testpmd printed no statistics at its end:\n%s", lastLines(log, 20))
	}
	end, _, _ = strings.Cut(end, "Accumulated forward statistics")
	for i, m := range forwardLine.FindAllStringSubmatch(end, -1) {
		if i%2 == 0 {
			ports = append(ports, Counts{})
		}
		port := &ports[len(ports)-1]
		n, _ := strconv.ParseUint(m[2], 10, 64)
		dropped, _ := strconv.ParseUint(m[3], 10, 64)
		if m[1] == "RX" {
			port.Received = n
		} else {
			port.Sent, port.Dropped = n, dropped
		}
	}
	return ports, nil
}

// lastLines returns the last n lines of a text.
func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return strings.Join(lines[max(len(lines)-n, 0):], "\n")
}
