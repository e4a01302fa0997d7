package main

import (
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"os/user"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

//go:embed schema.sql
var schemaSQL string

//go:embed seed.sql
var seedSQL string

const readTimeout = 3 * time.Second   // headers and body, under requestTimeout; a slow client costs itself the connection
const writeTimeout = 15 * time.Second // a slow reader as well
const idleTimeout = 2 * time.Minute   // between two requests, longer than proxies keep a connection
const stopTimeout = 8 * time.Second   // for requests in flight; Docker kills after 10
const maxHeaderBytes = 16 << 10       // ten times what a browser sends

func main() {
	debug.SetGCPercent(400)       // little is live and a page is garbage at once: collect each 16 MiB, not each 4
	debug.SetMemoryLimit(1 << 29) // large pages for many clients are much garbage: beyond 512 MiB collect as soon as it grows
	if err := run(context.Background(), os.Getenv, os.Args[1:]...); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// run is the program. With the argument "ready" it only asks the running service whether it is.
func run(ctx context.Context, getenv func(string) string, args ...string) error {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	addr := cmp.Or(getenv("ADDR"), "127.0.0.1:8080")
	if len(args) == 1 && args[0] == "ready" {
		return askReady(addr)
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("cannot listen on %s: stop the program that does, or set ADDR to another address: %w", addr, err)
	}
	databaseURL := getenv("DATABASE_URL")
	if databaseURL == "" {
		private, err := startPostgres(ctx, ".postgres", "")
		if err != nil {
			return err
		}
		defer private.stop()
		log.Info("started a private PostgreSQL", "folder", private.folder)
		databaseURL = private.url + "&role=patient_interactions"
	}
	store, err := OpenStore(ctx, databaseURL)
	if err != nil {
		return err
	}
	defer store.Close()
	log.Info("serving", "url", "http://"+strings.Replace(listener.Addr().String(), "[::]", "127.0.0.1", 1)+"/docs/")
	return serve(ctx, listener, newHandler(store, log))
}

// serve answers requests until ctx ends, and then those that are in flight.
func serve(ctx context.Context, listener net.Listener, handler http.Handler) error {
	server := &http.Server{Handler: handler, ReadTimeout: readTimeout, WriteTimeout: writeTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeaderBytes}
	stopped := make(chan error, 1)
	context.AfterFunc(ctx, func() {
		grace, cancel := context.WithTimeout(context.Background(), stopTimeout)
		defer cancel()
		stopped <- server.Shutdown(grace)
	})
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve: %w", err)
	}
	return <-stopped
}

// askReady is the health check of an image that has no shell.
func askReady(addr string) error {
	answer, err := http.Get("http://" + addr + "/readyz")
	if err == nil && answer.StatusCode != http.StatusOK {
		err = errors.New(answer.Status)
	}
	return err
}

// postgres is a private server, reached by a unix socket only.
type postgres struct {
	programs, folder, data, socket, url string
	user                                *syscall.Credential // nil: the user who runs this program
}

// startPostgres starts the installed PostgreSQL with its data in folder, and loads schema and seed the first time. As
// root, which PostgreSQL refuses, it runs as the user postgres with the data in that user's home, since that user may not
// enter every folder.
func startPostgres(ctx context.Context, folder, settings string) (*postgres, error) {
	p := &postgres{programs: findPrograms()}
	version, _ := exec.Command(filepath.Join(p.programs, "postgres"), "--version").Output()
	major := regexp.MustCompile(`\d+`).FindString(string(version)) // postgres (PostgreSQL) 15.18 (Debian …)
	if major == "" {
		return nil, errors.New("PostgreSQL is not installed: run 'sudo apt-get install -y postgresql' (macOS: 'brew install postgresql'), or set DATABASE_URL")
	}
	if err := p.claim(folder); err != nil {
		return nil, err
	}
	p.data, p.url = filepath.Join(p.folder, major), "postgres:///postgres?user=postgres&host="+url.QueryEscape(p.socket)
	p.run("pg_ctl", "stop", "-D", p.data) // the one that a killed run left behind
	err := p.initialize()
	if err == nil {
		err = p.run("pg_ctl", "start", "-D", p.data, "-l", filepath.Join(p.data, "server.log"), "-o", "-c listen_addresses= -c log_error_verbosity=terse -c unix_socket_directories="+p.socket+settings)
	}
	if err == nil {
		err = load(ctx, p.url)
	}
	if err != nil {
		p.stop()
	}
	return p, err
}

func (p *postgres) stop() {
	p.run("pg_ctl", "stop", "-D", p.data) // one that does not run has stopped
	os.RemoveAll(p.socket)
}

// findPrograms returns the folder of PostgreSQL's programs, or nothing.
func findPrograms() string {
	bindir, _ := exec.Command("pg_config", "--bindir").Output() // where there is one
	folders := append(filepath.SplitList(os.Getenv("PATH")), strings.TrimSpace(string(bindir)),
		"/usr/lib/postgresql/[1-9][0-9]/bin", "/opt/homebrew/opt/postgresql@[1-9][0-9]/bin", "/usr/local/opt/postgresql@[1-9][0-9]/bin")
	for _, folder := range folders {
		if found, _ := filepath.Glob(filepath.Join(folder, "initdb")); found != nil {
			return filepath.Dir(found[len(found)-1]) // the newest
		}
	}
	return ""
}

// claim makes the folder this program's alone, with a socket in a folder whose name is short enough for one, and hands
// both to the user who runs PostgreSQL.
func (p *postgres) claim(folder string) (err error) {
	if p.folder, err = filepath.Abs(folder); err != nil {
		return err
	}
	uid, gid := os.Getuid(), os.Getgid()
	if uid == 0 {
		owner, err := user.Lookup("postgres")
		if err != nil {
			return errors.New("PostgreSQL refuses to run as root and there is no user postgres: run as an ordinary user, or set DATABASE_URL")
		}
		fmt.Sscan(owner.Uid+" "+owner.Gid, &uid, &gid)
		p.user = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		p.folder = filepath.Join(owner.HomeDir, "patient-interactions-"+url.PathEscape(p.folder))
	}
	made := os.MkdirAll(p.folder, 0o700)
	lock, err := syscall.Open(filepath.Join(p.folder, "lock"), syscall.O_CREAT|syscall.O_CLOEXEC, 0o600) // held as long as this process lives
	if err != nil {
		return errors.Join(made, err)
	}
	if syscall.Flock(lock, syscall.LOCK_EX|syscall.LOCK_NB) != nil {
		return fmt.Errorf("another run of this program holds %s: stop it, or set DATABASE_URL", p.folder)
	}
	p.socket, err = os.MkdirTemp("", "patient-interactions")
	return errors.Join(err, os.Chown(p.folder, uid, gid), os.Chown(p.socket, uid, gid))
}

// initialize makes the data the first time, whole or not at all: a killed initdb leaves half of it.
func (p *postgres) initialize() error {
	if _, err := os.Stat(p.data); err == nil {
		return nil
	}
	fresh := p.data + ".new"
	if err := errors.Join(os.RemoveAll(fresh), p.run("initdb", "-D", fresh, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C")); err != nil {
		return err
	}
	return os.Rename(fresh, p.data)
}

// run runs one of PostgreSQL's programs, in a process group of its own, so that Ctrl-C reaches the service first.
func (p *postgres) run(program string, args ...string) error {
	cmd := exec.Command(filepath.Join(p.programs, program), args...)
	cmd.Dir = "/" // the user postgres may not enter the checkout
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: p.user, Setpgid: true}
	if said, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", program, err, strings.TrimSpace(string(said)))
	}
	return nil
}

// load loads schema and seed in one transaction, unless the tables are there.
func load(ctx context.Context, databaseURL string) error {
	conn, err := pgx.Connect(ctx, databaseURL)
	if err != nil {
		return err
	}
	defer conn.Close(context.Background())
	var loaded bool
	err = conn.QueryRow(ctx, "SELECT to_regclass('interactions') IS NOT NULL").Scan(&loaded)
	if err == nil && !loaded {
		_, err = conn.Exec(ctx, schemaSQL+seedSQL)
	}
	return err
}
