package main

import "testing"

func TestGreet(t *testing.T) {
	if greet("x") != "hello, x" {
		t.Fatal(greet("x"))
	}
}
