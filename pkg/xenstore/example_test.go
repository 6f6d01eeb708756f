// SPDX-License-Identifier: Apache-2.0

package xenstore_test

import (
	"context"
	"errors"
	"fmt"
	"log"

	"github.com/netbackd/netbackd/pkg/xenstore"
)

// A back end announces itself in its directory and follows its front end. It
// reads its state in the transaction that writes it, so that a directory the
// toolstack has removed meanwhile is not created anew.
func Example() {
	ctx := context.Background()
	c, err := xenstore.Open(ctx)
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	const dir = "/local/domain/0/backend/vif/1/0"
	err = c.Transaction(ctx, func(tx *xenstore.Tx) error {
		if _, err := tx.ReadUint(ctx, dir+"/state", 8); err != nil {
			return err
		}
		if err := tx.Write(ctx, dir+"/feature-sg", "1"); err != nil {
			return err
		}
		return tx.Write(ctx, dir+"/state", "2")
	})
	if errors.Is(err, xenstore.ErrNotExist) {
		return // the device is gone
	}
	if err != nil {
		log.Fatal(err)
	}

	frontend, err := c.Read(ctx, dir+"/frontend")
	if err != nil {
		log.Fatal(err)
	}
	w, err := c.Watch(ctx, frontend+"/state")
	if err != nil {
		log.Fatal(err)
	}
	defer w.Close()
	for range w.C() { // the first event comes at once
		state, err := c.ReadUint(ctx, frontend+"/state", 8)
		if err != nil {
			state = 0 // missing, unreadable or no number: unknown
		}
		fmt.Println("front end is in state", state)
	}
	log.Fatal(c.Err()) // the channel closes with the connection
}
