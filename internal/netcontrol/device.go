// SPDX-License-Identifier: Apache-2.0

package netcontrol

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/netbackd/netbackd/internal/control"
	"github.com/netbackd/netbackd/internal/vhostnet"
)

// Device is one device of vhost-user.
type Device struct {
	Schema int             `json:"schema"`
	Device vhostnet.Status `json:"device"`
}

// DeviceSource answers the requests about the device of a process. *vhostnet.Device is one.
type DeviceSource interface {
	Status() vhostnet.Status
	Reset() bool
}

// errNoFrontend is the answer to a reset of a device without a front end.
var errNoFrontend = errors.New("no front end is connected")

// DeviceHandler serves the protocol of a process with one device of vhost-user:
//
//	GET  /v1/daemon        -> Daemon
//	GET  /v1/device        -> Device
//	POST /v1/device/reset  -> 204: the connection of the front end was closed
func DeviceHandler(daemon func() Daemon, src DeviceSource) http.Handler {
	r := control.NewRoutes(nil)
	r.Get("/v1/daemon", func() any { return withSchema(daemon()) })
	r.Get("/v1/device", func() any { return Device{Schema: Schema, Device: src.Status()} })
	r.Call("POST /v1/device/reset", func(*http.Request) (any, error) {
		if !src.Reset() {
			return nil, errNoFrontend
		}
		return nil, nil
	})
	return r
}

// Device returns the status of the device of the process at the socket.
func (c *Client) Device(ctx context.Context) (vhostnet.Status, error) {
	var d Device
	if err := c.Do(ctx, http.MethodGet, "/v1/device", &d); err != nil {
		return vhostnet.Status{}, err
	}
	return d.Device, Program.CheckSchema(d.Schema, Schema)
}

// ResetDevice closes the connection of the device's front end.
func (c *Client) ResetDevice(ctx context.Context) error {
	return c.Do(ctx, http.MethodPost, "/v1/device/reset", nil)
}

// devicesDir is the directory below the run directory in which each device of vhost-user has
// a socket of its name.
const devicesDir = "devices"

// socketSuffix ends the name of the socket.
const socketSuffix = ".sock"

// DeviceSocket returns the path of the control socket of a device.
func DeviceSocket(runDir, name string) string {
	return filepath.Join(runDir, devicesDir, name+socketSuffix)
}

// deviceTime bounds the wait for the answer of one device.
const deviceTime = 2 * time.Second

// askDevices bounds the devices that are asked at a time.
const askDevices = 32

// Devices asks all devices of vhost-user for their status, and returns it in the order of
// names. A socket that no process listens at is removed. A device that does not answer has
// only a name and an error.
func Devices(ctx context.Context, runDir string) ([]vhostnet.Status, error) {
	names, err := deviceNames(runDir)
	if err != nil {
		return nil, err
	}
	answers := make([]*vhostnet.Status, len(names))
	var wg sync.WaitGroup
	turns := make(chan struct{}, askDevices)
	for i, name := range names {
		turns <- struct{}{}
		wg.Go(func() {
			defer func() { <-turns }()
			answers[i] = askDevice(ctx, DeviceSocket(runDir, name), name)
		})
	}
	wg.Wait()
	list := []vhostnet.Status{}
	for _, s := range answers {
		if s != nil {
			list = append(list, *s)
		}
	}
	return list, nil
}

// deviceNames returns the names of sockets of devices, in order.
func deviceNames(runDir string) ([]string, error) {
	files, err := os.ReadDir(filepath.Join(runDir, devicesDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the devices of vhost-user: %w", err)
	}
	var names []string
	for _, f := range files {
		if name, ok := strings.CutSuffix(f.Name(), socketSuffix); ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// askDevice returns the status of one device, nil if it has ended.
func askDevice(ctx context.Context, path, name string) *vhostnet.Status {
	ctx, cancel := context.WithTimeout(ctx, deviceTime)
	defer cancel()
	c := NewClient(path)
	defer c.Close()
	s, err := c.Device(ctx)
	switch {
	case errors.Is(err, control.ErrNotRunning):
		control.RemoveDead(Program, path)
		return nil
	case err != nil:
		return &vhostnet.Status{
			Kind: vhostnet.Kind, Name: name, Error: err.Error(),
			Offered: []string{}, Features: []string{}, Memory: []vhostnet.Memory{},
			Queues: []vhostnet.QueueStatus{}, Counters: map[string]uint64{},
		}
	}
	return &s
}

// ListenDevice makes the control socket of a device. Its Close removes the lock as well.
func ListenDevice(runDir, name string) (net.Listener, error) {
	return control.ListenOnce(Program, DeviceSocket(runDir, name))
}
