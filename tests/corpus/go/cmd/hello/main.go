package main

import (
	"fmt"
	"os"
)

var version = "none"

func greet(name string) string { return "hello, " + name }

func main() {
	fmt.Println(greet("gopher"), version, os.Getuid())
}
