// Command plugin is a network plugin that does what it is told: its first argument to
// fail, to hang or to talk nonsense is the content of the file "mode" beside it.
//
//	ok         it works
//	add-fail   ADD fails with a plugin error of code 11
//	add-exit   ADD fails without an answer
//	add-hang   ADD returns when the mode has changed
//	add-garbage, add-empty, add-flood   ADD answers with what is no result
//	del-fail   DEL fails
//	del-hang   DEL returns when the mode has changed
//
// Each call of ADD and DEL becomes a line of the file "calls": verb and container.
package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const result = `{"cniVersion":"1.0.0","ips":[{"address":"10.9.8.7/24"}]}`

func main() {
	self, err := os.Executable()
	if err != nil {
		fail(7, err.Error())
	}
	dir, verb := filepath.Dir(self), os.Getenv("CNI_COMMAND")
	switch verb {
	case "VERSION":
		fmt.Println(`{"cniVersion":"1.0.0","supportedVersions":["0.4.0","1.0.0"]}`)
		return
	case "ADD", "DEL":
		note(dir, verb+" "+os.Getenv("CNI_CONTAINERID"))
	default:
		return
	}
	action, ok := strings.CutPrefix(mode(dir), strings.ToLower(verb)+"-")
	if !ok {
		action = ""
	}
	switch action {
	case "fail":
		fail(11, "told to fail")
	case "exit":
		fmt.Fprintln(os.Stderr, "last words")
		os.Exit(3)
	case "hang":
		for told := mode(dir); mode(dir) == told; {
			time.Sleep(10 * time.Millisecond)
		}
	case "garbage":
		fmt.Println("this is not a result")
		return
	case "empty":
		return
	case "flood": // more than anybody should keep
		_, _ = os.Stdout.Write(bytes.Repeat([]byte("nonsense "), 1<<20))
		return
	}
	if verb == "ADD" {
		fmt.Println(result)
	}
}

func mode(dir string) string {
	body, err := os.ReadFile(filepath.Join(dir, "mode"))
	if err != nil {
		fail(7, err.Error())
	}
	return string(body)
}

func note(dir, line string) {
	f, err := os.OpenFile(filepath.Join(dir, "calls"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		fail(7, err.Error())
	}
	fmt.Fprintln(f, line)
	if err := f.Close(); err != nil {
		fail(7, err.Error())
	}
}

func fail(code int, message string) {
	fmt.Printf("{\"cniVersion\":\"1.0.0\",\"code\":%d,\"msg\":%q}\n", code, message)
	os.Exit(1)
}
