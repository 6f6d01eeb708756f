// SPDX-License-Identifier: Apache-2.0

package foreign

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"time"
)

// monitor is a connection of QEMU's machine protocol. Events are dropped.
type monitor struct {
	conn net.Conn
	in   *bufio.Scanner
}

// openMonitor connects and leaves the mode in which capabilities are agreed.
func (g *Guest) openMonitor(ctx context.Context, path string) (*monitor, error) {
	c, err := g.dial(ctx, path)
	if err != nil {
		return nil, err
	}
	m := &monitor{conn: c, in: bufio.NewScanner(c)}
	m.in.Buffer(nil, 1<<20)
	if _, err := m.do(ctx, "qmp_capabilities", nil); err != nil {
		_ = c.Close()
		return nil, err
	}
	return m, nil
}

// do runs a command.
func (m *monitor) do(ctx context.Context, command string, arguments any) (json.RawMessage, error) {
	type request struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
	}
	defer context.AfterFunc(ctx, func() { _ = m.conn.SetDeadline(time.Unix(1, 0)) })()
	b, err := json.Marshal(request{command, arguments})
	if err != nil {
		return nil, err
	}
	if _, err := m.conn.Write(append(b, '\n')); err != nil {
		return nil, fmt.Errorf("monitor: %w", err)
	}
	for m.in.Scan() {
		var answer struct {
			Return json.RawMessage `json:"return"`
			Error  *struct {
				Desc string `json:"desc"`
			} `json:"error"`
		}
		if err := json.Unmarshal(m.in.Bytes(), &answer); err != nil {
			return nil, fmt.Errorf("monitor: %w", err)
		}
		switch {
		case answer.Error != nil:
			return nil, fmt.Errorf("monitor: %s: %s", command, answer.Error.Desc)
		case answer.Return != nil:
			return answer.Return, nil
		}
	}
	return nil, fmt.Errorf("monitor: %s: no answer: %w", command, m.in.Err())
}
