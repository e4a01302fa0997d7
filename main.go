// Patient-interactions is a backend with which doctors document interactions with patients and their outcome, see a
// patient's whole history, and find patients by their current health status.
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

const usage = `Usage: patient-interactions [-demo | -ready]

Serves the database in DATABASE_URL, such as postgres://patient_interactions@localhost/clinic?pool_max_conns=16.
Listens on ADDR, which is 127.0.0.1:8080 by default.

`

const (
	readHeaderTimeout = 3 * time.Second
	readTimeout       = 15 * time.Second // long notes may come over a slow connection
	writeTimeout      = 30 * time.Second // so may the largest page go
	idleTimeout       = 2 * time.Minute
	stopTimeout       = 8 * time.Second // Docker kills a container 10 seconds after it asked it to stop
	maxHeaderBytes    = 16 << 10
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	flags := flag.NewFlagSet("patient-interactions", flag.ExitOnError)
	demo := flags.Bool("demo", false, "start a throw-away PostgreSQL with sample data, and serve it instead of DATABASE_URL")
	ready := flags.Bool("ready", false, "ask the service that listens on ADDR whether it is ready: exits with 0 or 1")
	flags.Usage = func() {
		fmt.Fprint(flags.Output(), usage)
		flags.PrintDefaults()
	}
	flags.Parse(args) // exits after -help or an unknown flag
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q: see -help", flags.Arg(0))
	}

	addr := cmp.Or(os.Getenv("ADDR"), "127.0.0.1:8080")
	if *ready {
		return checkReady(addr)
	}
	databaseURL := os.Getenv("DATABASE_URL")
	if databaseURL == "" && !*demo {
		return errors.New("set DATABASE_URL to a PostgreSQL database, or pass -demo to try the service with sample data")
	}

	signals := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if *demo {
		signals = append(signals, syscall.SIGHUP) // the terminal was closed
	}
	ctx, cancel := signal.NotifyContext(context.Background(), signals...)
	defer cancel()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))

	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("%w: set ADDR to another address, such as 127.0.0.1:8081", err)
	}

	if *demo {
		server, err := startPostgres()
		if err != nil {
			return fmt.Errorf("start a throw-away PostgreSQL: %w", err)
		}
		defer server.stop()
		log.Info("started a throw-away PostgreSQL: its data is deleted when this program stops", "folder", server.folder)
		if err := loadSampleData(server.address("postgres")); err != nil {
			return fmt.Errorf("load schema.sql and seed.sql: %w", err)
		}
		databaseURL = server.address("patient_interactions") + "&pool_max_conns=16"
	}

	store, err := OpenStore(ctx, databaseURL)
	if err != nil {
		return err
	}
	defer store.Close()

	log.Info("serving", "url", "http://"+listener.Addr().String()+"/docs/")
	return serve(ctx, listener, newHandler(store, log), log)
}

// checkReady returns an error that says why the service on addr is not ready, or nil.
func checkReady(addr string) error {
	client := http.Client{
		Timeout:   5 * time.Second,
		Transport: &http.Transport{}, // unlike the default one, it ignores HTTP_PROXY
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
		ReadHeaderTimeout: readHeaderTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
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

// throwawayPostgres is a PostgreSQL server whose data ends with it. It listens on a unix socket in its folder, which only
// its user may enter.
type throwawayPostgres struct {
	programs string // the folder of initdb and pg_ctl
	folder   string
}

// startPostgres starts the installed PostgreSQL with new data in a temporary folder. The caller must stop it.
func startPostgres() (*throwawayPostgres, error) {
	programs, err := findPostgres()
	if err != nil {
		return nil, err
	}
	folder, err := os.MkdirTemp("", "patient-interactions-")
	if err != nil {
		return nil, err
	}
	p := &throwawayPostgres{programs, folder}
	if err := p.start(); err != nil {
		p.stop()
		return nil, err
	}
	return p, nil
}

// findPostgres returns the folder of PostgreSQL's programs. Debian keeps them off the PATH, in a folder for each version.
func findPostgres() (string, error) {
	if initdb, err := exec.LookPath("initdb"); err == nil {
		return filepath.Dir(initdb), nil
	}
	found, _ := filepath.Glob("/usr/lib/postgresql/[0-9][0-9]/bin/initdb")
	if len(found) == 0 {
		return "", errors.New("it is not installed: run 'sudo apt-get install -y postgresql', or use Docker, see README.md")
	}
	return filepath.Dir(found[len(found)-1]), nil // the newest
}

func (p *throwawayPostgres) start() error {
	if os.Getuid() == 0 {
		if err := exec.Command("chown", "postgres", p.folder).Run(); err != nil {
			return fmt.Errorf("run it as an ordinary user, or add a user postgres: %w", err)
		}
	}
	err := p.run("initdb", "-D", "data", "--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8")
	if err != nil {
		return err
	}
	// No fsync, because the data need not survive a crash. Terse, because details of an error can contain notes.
	settings := "-k '" + p.folder + "' -c listen_addresses= -c fsync=off -c log_error_verbosity=terse"
	return p.run("pg_ctl", "start", "-D", "data", "-l", "log", "-o", settings)
}

// stop stops the server and deletes its folder. Errors do not matter: a server whose folder is gone ends by itself.
func (p *throwawayPostgres) stop() {
	p.run("pg_ctl", "stop", "-D", "data", "-m", "immediate")
	os.RemoveAll(p.folder)
}

// address returns the connection string with which a user reaches the server.
func (p *throwawayPostgres) address(user string) string {
	return "postgres:///postgres?" + url.Values{"host": {p.folder}, "user": {user}}.Encode()
}

// run runs one of PostgreSQL's programs, which refuse to run as root. It gets a process group of its own, so that Ctrl-C
// does not interrupt it.
func (p *throwawayPostgres) run(program string, args ...string) error {
	command := append([]string{filepath.Join(p.programs, program)}, args...)
	if os.Getuid() == 0 {
		command = append([]string{"runuser", "-u", "postgres", "--"}, command...)
	}
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Dir = p.folder
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", program, err, strings.TrimSpace(string(output)))
	}
	return nil
}

// loadSampleData loads the schema and the sample data into an empty database.
func loadSampleData(ownerURL string) error {
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, ownerURL)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, schemaSQL+seedSQL)
	return err
}
