package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

const (
	readTimeout  = 5 * time.Second  // headers and body; a slow client costs itself the connection
	writeTimeout = 15 * time.Second // a slow reader as well
	stopTimeout  = 8 * time.Second  // for requests in flight; Docker kills after 10
)

func main() {
	if err := run(context.Background(), os.Getenv); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, getenv func(string) string) error {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	databaseURL := getenv("DATABASE_URL")
	if databaseURL == "" {
		return errors.New("set DATABASE_URL to a PostgreSQL that holds schema.sql, such as postgres://localhost/postgres?role=patient_interactions")
	}
	addr := cmp.Or(getenv("ADDR"), "127.0.0.1:8080")
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("cannot listen on %s: stop the program that does, or set ADDR to another address: %w", addr, err)
	}
	store, err := OpenStore(ctx, databaseURL)
	if err != nil {
		return err
	}
	defer store.Close()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	handler, err := newHandler(store, log)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: handler, ReadTimeout: readTimeout, WriteTimeout: writeTimeout}
	stopped := make(chan error, 1)
	go func() {
		<-ctx.Done()
		grace, cancel := context.WithTimeout(context.Background(), stopTimeout)
		defer cancel()
		stopped <- server.Shutdown(grace)
	}()
	log.Info("serving", "url", "http://"+listener.Addr().String()+"/docs/")
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve: %w", err)
	}
	return <-stopped
}
