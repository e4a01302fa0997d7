// Patient-interactions is an HTTP service for doctors. They document interactions with patients and the outcome of
// each, see a patient's whole history, and find patients by their current health status.
package main

import (
	"cmp"
	"context"
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

//go:embed schema.sql
var schemaSQL string

//go:embed seed.sql
var seedSQL string

const usage = `Usage: patient-interactions [flags]

Environment variables:
  ADDR
    	the address to listen on (default 127.0.0.1:8080)
  DATABASE_URL
    	the database, such as postgres://patient_interactions@localhost/clinic?pool_max_conns=16

Flags:
`

// stopTimeout is how long requests in flight may take after the signal to stop. Docker kills 10 seconds after it.
const stopTimeout = 8 * time.Second

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	demo := flag.Bool("demo", false, "use a throwaway PostgreSQL with sample data instead of DATABASE_URL")
	ready := flag.Bool("ready", false, "ask the service on ADDR whether it is ready, and exit with 0 or 1")
	flag.Usage = func() {
		fmt.Fprint(flag.CommandLine.Output(), usage)
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q: see -help", flag.Arg(0))
	}

	addr := cmp.Or(os.Getenv("ADDR"), "127.0.0.1:8080")
	databaseURL := os.Getenv("DATABASE_URL")
	switch {
	case *ready:
		return checkReady(addr)
	case *demo:
		return runDemo(addr)
	case databaseURL == "":
		return errors.New("set DATABASE_URL to a PostgreSQL database, or try the service with sample data: -demo")
	}
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	return runService(ctx, addr, databaseURL)
}

// runDemo runs the service on a throwaway PostgreSQL with sample data.
func runDemo(addr string) error {
	// PostgreSQL must not be left behind when the terminal is closed (SIGHUP), or when the program that reads the log
	// from a pipe ends (SIGPIPE).
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer cancel()
	signal.Ignore(syscall.SIGPIPE)

	postgres, err := startPostgres()
	if err != nil {
		return fmt.Errorf("start a throwaway PostgreSQL: %w", err)
	}
	defer postgres.stop()
	fmt.Fprintln(os.Stderr, "This is a demo. Its data is deleted when the program stops:", postgres.dir)

	if err := loadSchemaAndSeed(postgres.databaseURL("postgres")); err != nil {
		return fmt.Errorf("load schema.sql and seed.sql: %w", err)
	}
	return runService(ctx, addr, postgres.databaseURL("patient_interactions")+"&pool_max_conns=16")
}

// runService runs the service until ctx is done.
func runService(ctx context.Context, addr, databaseURL string) error {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	store, err := OpenStore(ctx, databaseURL)
	if err != nil {
		return err
	}
	defer store.Close()

	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("%w: set ADDR to another address, such as 127.0.0.1:8081", err)
	}
	reachable := strings.Replace(listener.Addr().String(), "[::]", "localhost", 1) // for a browser
	log.Info("serving", "url", "http://"+reachable+"/docs/")
	return serve(ctx, listener, newHandler(store, log), log)
}

// checkReady returns an error unless the service on addr is ready. An address without a host, such as :8080, is one of
// this machine.
func checkReady(addr string) error {
	client := http.Client{
		Timeout:   5 * time.Second,
		Transport: &http.Transport{}, // unlike http.DefaultTransport, it has no proxy
	}
	response, err := client.Get("http://" + addr + "/readyz")
	if err != nil {
		return fmt.Errorf("not ready: %w", err)
	}
	defer response.Body.Close()

	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("not ready: the service answered %s", response.Status)
	}
	return nil
}

// serve answers requests until ctx is done. Then it waits for the requests in flight, for at most stopTimeout.
func serve(ctx context.Context, listener net.Listener, handler http.Handler, log *slog.Logger) error {
	server := &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 3 * time.Second,
		ReadTimeout:       15 * time.Second, // long notes, slowly uploaded
		WriteTimeout:      30 * time.Second, // a large page, slowly downloaded
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()

	select {
	case err := <-failed:
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	}

	log.Info("stopping")
	grace, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	if err := server.Shutdown(grace); err != nil {
		log.Warn("closing the connections that are still busy", "waited", stopTimeout)
		server.Close()
	}
	return nil
}

// throwawayPostgres is a temporary PostgreSQL server. Its data, its log and its unix socket are in dir.
type throwawayPostgres struct {
	binDir string // the directory of initdb and pg_ctl
	dir    string
}

// startPostgres starts the installed PostgreSQL with new data in a temporary directory. The caller must stop it.
func startPostgres() (*throwawayPostgres, error) {
	binDir, err := findPostgres()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "patient-interactions-")
	if err != nil {
		return nil, err
	}
	p := &throwawayPostgres{binDir: binDir, dir: dir}
	if err := p.start(); err != nil {
		p.stop()
		return nil, err
	}
	return p, nil
}

// findPostgres returns the directory of PostgreSQL's programs. Debian keeps them off the PATH, one directory per
// version.
func findPostgres() (string, error) {
	if initdb, err := exec.LookPath("initdb"); err == nil {
		return filepath.Dir(initdb), nil
	}
	found, _ := filepath.Glob("/usr/lib/postgresql/[0-9][0-9]/bin/initdb")
	if len(found) == 0 {
		return "", errors.New("not installed: run 'sudo apt-get install -y postgresql', or use Docker, see README.md")
	}
	return filepath.Dir(found[len(found)-1]), nil // the newest
}

func (p *throwawayPostgres) start() error {
	if os.Getuid() == 0 {
		if err := exec.Command("chown", "postgres", p.dir).Run(); err != nil {
			return fmt.Errorf("to run as root, add a user postgres: %w", err)
		}
	}
	// Trust is safe, because only the user who runs PostgreSQL can reach the socket in the directory.
	err := p.run("initdb", "-D", ".", "--username=postgres", "--auth=trust", "--no-sync",
		"--encoding=UTF8", "--locale=C.UTF-8")
	if err != nil {
		return err
	}
	err = p.run("pg_ctl", "start", "-D", ".", "-l", "log", "-o", "-k . -c listen_addresses= -c fsync=off")
	if err != nil {
		log, _ := os.ReadFile(filepath.Join(p.dir, "log"))
		return fmt.Errorf("%w\n%s", err, log)
	}
	return nil
}

// stop stops the server and deletes its data. It ignores errors, because the server may not have started.
func (p *throwawayPostgres) stop() {
	p.run("pg_ctl", "stop", "-D", ".", "-m", "immediate")
	os.RemoveAll(p.dir)
}

// databaseURL returns the connection string for a user.
func (p *throwawayPostgres) databaseURL(user string) string {
	return "postgres:///postgres?" + url.Values{"host": {p.dir}, "user": {user}}.Encode()
}

// run runs one of PostgreSQL's programs. They refuse to run as root, so root runs them as the user postgres.
func (p *throwawayPostgres) run(program string, args ...string) error {
	command := append([]string{filepath.Join(p.binDir, program)}, args...)
	if os.Getuid() == 0 {
		command = append([]string{"runuser", "-u", "postgres", "--"}, command...)
	}
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Dir = p.dir
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", program, err, strings.TrimSpace(string(output)))
	}
	return nil
}

// loadSchemaAndSeed fills an empty database. Without arguments Exec sends both files as one query, which is one
// transaction.
func loadSchemaAndSeed(ownerURL string) error {
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, ownerURL)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, schemaSQL+seedSQL)
	return err
}
