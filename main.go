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
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

//go:embed schema.sql
var schemaSQL string

//go:embed seed.sql
var seedSQL string

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
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	addr := cmp.Or(getenv("ADDR"), "127.0.0.1:8080")
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("cannot listen on %s: stop the program that does, or set ADDR to another address: %w", addr, err)
	}
	databaseURL := getenv("DATABASE_URL")
	if databaseURL == "" {
		folder, err := dataFolder()
		if err != nil {
			return err
		}
		log.Info("starting a private PostgreSQL", "folder", folder)
		private, err := startPostgres(ctx, folder)
		if err != nil {
			return err
		}
		defer private.stop()
		databaseURL = private.url + "&role=patient_interactions"
	}
	store, err := OpenStore(ctx, databaseURL)
	if err != nil {
		return err
	}
	defer store.Close()
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

// dataFolder is where go run . keeps its database: in the checkout, or as root in the home of the user postgres, since
// PostgreSQL refuses root and that user may not enter every checkout.
func dataFolder() (string, error) {
	checkout, err := os.Getwd()
	if err != nil || os.Getuid() != 0 {
		return filepath.Join(checkout, ".postgres"), err
	}
	owner, err := user.Lookup("postgres")
	if err != nil {
		return "", errors.New("PostgreSQL refuses to run as root and there is no user postgres: run as an ordinary user, or set DATABASE_URL")
	}
	return filepath.Join(owner.HomeDir, "patient-interactions-"+url.PathEscape(checkout)), nil
}

// postgres is a private server, reached by a unix socket only.
type postgres struct {
	bin, data, socket, url string
	owner                  *syscall.Credential // nil: the user who runs this program
	lock                   *os.File
}

// startPostgres starts the installed PostgreSQL with its data in folder, and loads schema and seed the first time.
func startPostgres(ctx context.Context, folder string, options ...string) (*postgres, error) {
	p := &postgres{bin: postgresPrograms()}
	version, err := exec.Command(filepath.Join(p.bin, "postgres"), "--version").Output()
	words := strings.Fields(string(version))
	if err != nil || len(words) < 3 {
		return nil, errors.New("PostgreSQL is not installed: run 'sudo apt-get install -y postgresql' (macOS: 'brew install postgresql'), or set DATABASE_URL")
	}
	major, _, _ := strings.Cut(words[2], ".")
	p.data = filepath.Join(folder, major)
	if p.socket, err = os.MkdirTemp("", "pg"); err != nil {
		return nil, err
	}
	if err := p.claim(folder); err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(p.data, "PG_VERSION")); err != nil {
		fresh := p.data + ".new" // a killed initdb leaves half a folder
		if err := os.RemoveAll(fresh); err != nil {
			return nil, err
		}
		if err := p.run("initdb", "-D", fresh, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C"); err != nil {
			return nil, err
		}
		if err := os.Rename(fresh, p.data); err != nil {
			return nil, err
		}
	}
	if p.run("pg_ctl", "-D", p.data, "status") == nil { // the service was killed, its PostgreSQL was not
		if err := p.run("pg_ctl", "-D", p.data, "-m", "fast", "-w", "stop"); err != nil {
			return nil, err
		}
	}
	settings := append([]string{"listen_addresses=", "unix_socket_directories=" + p.socket, "log_error_verbosity=terse"}, options...)
	if err := p.run("pg_ctl", "-D", p.data, "-l", filepath.Join(p.data, "server.log"), "-w", "-o", "-c "+strings.Join(settings, " -c "), "start"); err != nil {
		return nil, err
	}
	p.url = "postgres:///postgres?user=postgres&host=" + url.QueryEscape(p.socket)
	if err := load(ctx, p.url); err != nil {
		p.stop()
		return nil, err
	}
	return p, nil
}

// claim makes folder this program's alone, and hands it to the user who may run PostgreSQL.
func (p *postgres) claim(folder string) error {
	err := os.MkdirAll(folder, 0o700)
	if err == nil && os.Getuid() == 0 {
		var owner *user.User
		if owner, err = user.Lookup("postgres"); err != nil {
			return err
		}
		uid, _ := strconv.Atoi(owner.Uid)
		gid, _ := strconv.Atoi(owner.Gid)
		p.owner = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		err = errors.Join(os.Chown(folder, uid, gid), os.Chown(p.socket, uid, gid))
	}
	if err == nil {
		p.lock, err = os.Create(filepath.Join(folder, "lock"))
	}
	if err != nil {
		return fmt.Errorf("prepare the folder of PostgreSQL: %w", err)
	}
	if syscall.Flock(int(p.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
		return fmt.Errorf("another run of this program holds %s: stop it, or set DATABASE_URL", folder)
	}
	return nil
}

// run runs one of PostgreSQL's programs. pg_ctl gives the server a session of its own, which Ctrl-C does not reach.
func (p *postgres) run(program string, args ...string) error {
	cmd := exec.Command(filepath.Join(p.bin, program), args...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: p.owner}
	output, err := os.CreateTemp("", "pg") // not a pipe: the server would keep it open
	if err != nil {
		return err
	}
	defer os.Remove(output.Name())
	cmd.Stdout, cmd.Stderr = output, output
	if err := cmd.Run(); err != nil {
		said, _ := os.ReadFile(output.Name())
		return fmt.Errorf("%s: %w: %s", program, err, strings.TrimSpace(string(said)))
	}
	return nil
}

func (p *postgres) stop() {
	p.run("pg_ctl", "-D", p.data, "-m", "fast", "-w", "stop")
	os.RemoveAll(p.socket)
	p.lock.Close()
}

// postgresPrograms returns the folder of PostgreSQL's programs, or nothing.
func postgresPrograms() string {
	var folders []string
	if path, err := exec.LookPath("pg_ctl"); err == nil {
		folders = append(folders, filepath.Dir(path))
	}
	if bindir, err := exec.Command("pg_config", "--bindir").Output(); err == nil {
		folders = append(folders, strings.TrimSpace(string(bindir)))
	}
	for _, pattern := range []string{"/usr/lib/postgresql/[1-9][0-9]/bin", "/opt/homebrew/opt/postgresql@*/bin", "/usr/local/opt/postgresql@*/bin"} {
		found, _ := filepath.Glob(pattern)
		for i := len(found) - 1; i >= 0; i-- { // the newest first
			folders = append(folders, found[i])
		}
	}
	for _, folder := range folders {
		if _, err := os.Stat(filepath.Join(folder, "initdb")); err == nil {
			return folder
		}
	}
	return ""
}

// load loads schema and seed in one transaction, unless the tables are there.
func load(ctx context.Context, databaseURL string) error {
	conn, err := pgx.Connect(ctx, databaseURL)
	if err != nil {
		return fmt.Errorf("connect to load the schema: %w", err)
	}
	defer conn.Close(context.Background())
	var loaded bool
	if err := conn.QueryRow(ctx, "SELECT to_regclass('interactions') IS NOT NULL").Scan(&loaded); err != nil || loaded {
		return err
	}
	if _, err := conn.Exec(ctx, schemaSQL+seedSQL); err != nil {
		return fmt.Errorf("load schema.sql and seed.sql: %w", err)
	}
	return nil
}
