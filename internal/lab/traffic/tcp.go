// SPDX-License-Identifier: Apache-2.0

package traffic

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// A stream has a header of 16 bytes, magic and seed, and then the pattern until its end.
// The receiver answers with a report of 32 bytes.
const (
	tcpMagic   = 0x6e65746261636b64
	tcpHeader  = 16
	tcpReport  = 32
	tcpChunk   = 128 * 1024
	maxStreams = 256
)

// TCPResult holds the receiver's result of a stream.
type TCPResult struct {
	Bytes    int64         `json:"bytes"` // of the pattern
	Wrong    int64         `json:"wrong"` // bytes that differ
	First    int64         `json:"first"` // place of the first one, -1 if none
	Duration time.Duration `json:"duration_ns"`
}

// Rate returns the speed in bits per second.
func (r TCPResult) Rate() float64 {
	if r.Duration <= 0 {
		return 0
	}
	return float64(r.Bytes) * 8 / r.Duration.Seconds()
}

// DialTCP connects to an address like "192.0.2.1:7000".
func DialTCP(ctx context.Context, addr string) (net.Conn, error) {
	var d net.Dialer
	d.SetMultipathTCP(false)
	return d.DialContext(ctx, "tcp", addr)
}

// TCPSend holds the parameters of a stream.
type TCPSend struct {
	// Bytes is the length of the stream. 0 means to send for Duration.
	Bytes    int64         `json:"bytes,omitempty"`
	Duration time.Duration `json:"duration_ns,omitempty"`
	Seed     uint64        `json:"seed,omitempty"`
	// Rate limits the stream, in bytes per second. 0 means no limit.
	Rate int64 `json:"rate,omitempty"`
}

// SendTCP sends a stream, closes the connection and returns the receiver's
// report. Bytes lost or changed are an error.
func SendTCP(ctx context.Context, c net.Conn, s TCPSend) (TCPResult, error) {
	defer func() { _ = c.Close() }()
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
	sent, err := sendStream(ctx, c, s)
	if err != nil {
		return TCPResult{Bytes: sent}, orContext(ctx, fmt.Errorf("send after %d bytes: %w", sent, err))
	}
	if w, ok := c.(interface{ CloseWrite() error }); ok {
		if err := w.CloseWrite(); err != nil {
			return TCPResult{Bytes: sent}, orContext(ctx, err)
		}
	}
	var b [tcpReport]byte
	if _, err := io.ReadFull(c, b[:]); err != nil {
		return TCPResult{Bytes: sent}, orContext(ctx, fmt.Errorf("report on %d bytes: %w", sent, err))
	}
	r := TCPResult{
		Bytes:    int64(binary.BigEndian.Uint64(b[0:])),
		Wrong:    int64(binary.BigEndian.Uint64(b[8:])),
		First:    int64(binary.BigEndian.Uint64(b[16:])),
		Duration: time.Duration(binary.BigEndian.Uint64(b[24:])),
	}
	if r.Bytes != sent || r.Wrong != 0 {
		return r, fmt.Errorf("%d bytes were sent, %d arrived, %d of them wrong, the first at %d", sent, r.Bytes, r.Wrong, r.First)
	}
	return r, nil
}

func sendStream(ctx context.Context, c net.Conn, s TCPSend) (sent int64, err error) {
	var h [tcpHeader]byte
	binary.BigEndian.PutUint64(h[0:], tcpMagic)
	binary.BigEndian.PutUint64(h[8:], s.Seed)
	if _, err := c.Write(h[:]); err != nil {
		return 0, err
	}
	buf := make([]byte, tcpChunk)
	start := time.Now()
	for {
		n := len(buf)
		if s.Rate > 0 {
			n = int(min(int64(n), max(s.Rate/50, 1))) // some 50 writes a second
			due := start.Add(time.Duration(float64(sent) / float64(s.Rate) * float64(time.Second)))
			if err := sleepUntil(ctx, due); err != nil {
				return sent, err
			}
		}
		if s.Bytes > 0 {
			n = int(min(int64(n), s.Bytes-sent))
		} else if time.Since(start) >= s.Duration {
			n = 0
		}
		if n == 0 {
			return sent, nil
		}
		Fill(buf[:n], s.Seed, uint64(sent))
		w, err := c.Write(buf[:n])
		sent += int64(w)
		if err != nil {
			return sent, err
		}
	}
}

func sleepUntil(ctx context.Context, t time.Time) error {
	d := time.Until(t)
	if d <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// orContext adds the context's error to an expired deadline that was derived from it.
func orContext(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("%w: %w", ctx.Err(), err)
	}
	return err
}

// TCPServer receives streams.
type TCPServer struct {
	ln net.Listener

	mu   sync.Mutex
	done []TCPResult // guarded by mu
}

// ListenTCP opens a server at an address like ":7000".
func ListenTCP(addr string) (*TCPServer, error) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	ln, err := lc.Listen(context.Background(), "tcp", addr)
	if err != nil {
		return nil, err
	}
	return &TCPServer{ln: ln}, nil
}

// Addr returns the server's address.
func (s *TCPServer) Addr() net.Addr { return s.ln.Addr() }

// Results returns the results of the last 256 streams that have ended.
func (s *TCPServer) Results() []TCPResult {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]TCPResult(nil), s.done...)
}

// Close ends a server that was never served.
func (s *TCPServer) Close() error { return s.ln.Close() }

// Serve receives streams until ctx ends. It then waits for the last stream and returns
// nil.
func (s *TCPServer) Serve(ctx context.Context) error {
	defer func() { _ = s.ln.Close() }()
	defer context.AfterFunc(ctx, func() { _ = s.ln.Close() })()
	var wg sync.WaitGroup
	defer wg.Wait()
	room := make(chan struct{}, maxStreams)
	for {
		c, err := s.ln.Accept()
		if ctx.Err() != nil {
			if err == nil {
				_ = c.Close()
			}
			return nil
		}
		if err != nil {
			return err
		}
		select {
		case room <- struct{}{}:
		default:
			_ = c.Close()
			continue
		}
		wg.Go(func() {
			defer func() { <-room }()
			defer func() { _ = c.Close() }()
			defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
			s.receive(c)
		})
	}
}

// receive receives one stream. The result counts only the bytes that it could read.
func (s *TCPServer) receive(c net.Conn) {
	var h [tcpHeader]byte
	if _, err := io.ReadFull(c, h[:]); err != nil || binary.BigEndian.Uint64(h[:]) != tcpMagic {
		return
	}
	seed := binary.BigEndian.Uint64(h[8:])
	r := TCPResult{First: -1}
	start := time.Now()
	buf := make([]byte, tcpChunk)
	var err error
	for err == nil {
		var n int
		n, err = c.Read(buf)
		wrong, first := Check(buf[:n], seed, uint64(r.Bytes))
		if wrong > 0 && r.First < 0 {
			r.First = r.Bytes + int64(first)
		}
		r.Wrong += int64(wrong)
		r.Bytes += int64(n)
	}
	r.Duration = time.Since(start)

	s.mu.Lock()
	if s.done = append(s.done, r); len(s.done) > maxStreams {
		s.done = s.done[1:]
	}
	s.mu.Unlock()

	if errors.Is(err, io.EOF) {
		var b [tcpReport]byte
		binary.BigEndian.PutUint64(b[0:], uint64(r.Bytes))
		binary.BigEndian.PutUint64(b[8:], uint64(r.Wrong))
		binary.BigEndian.PutUint64(b[16:], uint64(r.First))
		binary.BigEndian.PutUint64(b[24:], uint64(r.Duration))
		_, _ = c.Write(b[:]) // the sender may ignore the report
	}
}
