package main

func (b *bed) echo() error  { return nil }
func (b *bed) wakes() error { return nil }
