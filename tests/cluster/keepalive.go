// Keep-alive clients: GET one URL and POST to another, in turn, until SIGINT; then say how many answers came.
//
// usage: keepalive CA GET-URL POST-URL CLIENTS
//
// A GET must be answered 200 and a POST 400. Anything else, and every error, is printed.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

func main() {
	pem, err := os.ReadFile(os.Args[1])
	if err != nil {
		panic(err)
	}
	trusted := x509.NewCertPool()
	trusted.AppendCertsFromPEM(pem)
	clients, err := strconv.Atoi(os.Args[4])
	if err != nil {
		panic(err)
	}
	transport := &http.Transport{
		TLSClientConfig:     &tls.Config{RootCAs: trusted},
		TLSHandshakeTimeout: 30 * time.Second,
		MaxIdleConnsPerHost: clients,
	}
	client := &http.Client{Transport: transport, Timeout: 60 * time.Second}
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt)

	var over atomic.Bool
	var answers atomic.Int64
	var working sync.WaitGroup
	ask := func(wanted int, what string, request func() (*http.Response, error)) {
		response, err := request()
		if err != nil {
			fmt.Println(what, err)
			return
		}
		defer response.Body.Close()
		if _, err := io.Copy(io.Discard, response.Body); err != nil {
			fmt.Println(what, err)
			return
		}
		if response.StatusCode != wanted {
			fmt.Println(what, response.Status)
			return
		}
		answers.Add(1)
	}
	for n := 0; n < clients; n++ {
		working.Add(1)
		go func() {
			defer working.Done()
			for !over.Load() {
				ask(200, "GET", func() (*http.Response, error) { return client.Get(os.Args[2]) })
				ask(400, "POST", func() (*http.Response, error) {
					return client.Post(os.Args[3], "multipart/form-data; boundary=b", strings.NewReader("not a form"))
				})
			}
		}()
	}
	<-interrupted
	over.Store(true)
	working.Wait()
	fmt.Println(answers.Load(), "answers")
}
