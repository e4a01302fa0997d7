// Patient-interactions is an HTTP service in which doctors document interactions with patients and the outcome of
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

DATABASE_URL names the database, for example postgres://patient_interactions@localhost/clinic?pool_max_conns=16.
ADDR is the address to listen on, by default 127.0.0.1:8080.

`

// stopTimeout is how long requests in flight may take once the program was told to stop. Docker kills after 10
// seconds.
const stopTimeout = 8 * time.Second

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	flags := flag.NewFlagSet("patient-interactions", flag.ExitOnError)
	demo := flags.Bool("demo", false, "use a throwaway PostgreSQL with sample data instead of DATABASE_URL")
	ready := flags.Bool("ready", false, "ask the service on ADDR whether it is ready, and exit with 0 or 1")
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
		return errors.New("set DATABASE_URL to a PostgreSQL database, or try the service with sample data: -demo")
	}

	signals := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if *demo {
		// A closed terminal, or a pipe of the log that ends first, must not leave PostgreSQL behind.
		signals = append(signals, syscall.SIGHUP)
		signal.Ignore(syscall.SIGPIPE)
	}
	ctx, cancel := signal.NotifyContext(context.Background(), signals...)
	defer cancel()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))

	// Listen before PostgreSQL is started, which a port that is taken makes pointless.
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("%w: set ADDR to another address, such as 127.0.0.1:8081", err)
	}

	if *demo {
		postgres, err := startPostgres()
		if err != nil {
			return fmt.Errorf("start a throwaway PostgreSQL: %w", err)
		}
		defer postgres.stop()
		log.Info("started a throwaway PostgreSQL, which is deleted when this program stops", "dir", postgres.dir)
		if err := loadSchemaAndSeed(postgres.url("postgres")); err != nil {
			return fmt.Errorf("load schema.sql and seed.sql: %w", err)
		}
		databaseURL = postgres.url("patient_interactions") + "&pool_max_conns=16"
	}

	store, err := OpenStore(ctx, databaseURL)
	if err != nil {
		return err
	}
	defer store.Close()

	log.Info("serving", "url", "http://"+listener.Addr().String()+"/docs/")
	return serve(ctx, listener, newHandler(store, log), log)
}

// checkReady returns an error unless the service on addr is ready.
func checkReady(addr string) error {
	client := http.Client{
		Timeout:   5 * time.Second,
		Transport: &http.Transport{}, // the default one would send a request for :8080 to HTTP_PROXY
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

// throwawayPostgres is a temporary PostgreSQL server. It keeps its data in dir and listens only on a unix socket
// there.
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
			return fmt.Errorf("run it as an ordinary user, or add a user postgres: %w", err)
		}
	}
	err := p.exec("initdb", "-D", "data", "--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8")
	if err != nil {
		return err
	}
	// No fsync, because the data need not survive a crash. Terse, because details of an error can contain notes. The
	// directory is in quotes, because pg_ctl hands the options to a shell.
	options := "-k '" + p.dir + "' -c listen_addresses= -c fsync=off -c log_error_verbosity=terse"
	return p.exec("pg_ctl", "start", "-D", "data", "-l", "log", "-o", options)
}

// stop stops the server and deletes its data. It ignores errors: the server may not run, and without its files it
// stops within a minute.
func (p *throwawayPostgres) stop() {
	p.exec("pg_ctl", "stop", "-D", "data", "-m", "immediate")
	os.RemoveAll(p.dir)
}

// url returns the address of the server, to log in as user.
func (p *throwawayPostgres) url(user string) string {
	return "postgres:///postgres?" + url.Values{"host": {p.dir}, "user": {user}}.Encode()
}

// exec runs a program of PostgreSQL: as the user postgres if this program runs as root, which PostgreSQL refuses, and
// in a process group of its own, so that Ctrl-C does not interrupt it.
func (p *throwawayPostgres) exec(program string, args ...string) error {
	command := append([]string{filepath.Join(p.binDir, program)}, args...)
	if os.Getuid() == 0 {
		command = append([]string{"runuser", "-u", "postgres", "--"}, command...)
	}
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Dir = p.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", program, err, strings.TrimSpace(string(output)))
	}
	return nil
}

// loadSchemaAndSeed fills an empty database. It executes both files at once, which makes them one transaction.
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
