/* What a program does to a mount while its gate opens and shuts. Each mode
 * says on standard output what the test waits for, and exits 0 only if it saw
 * nothing but what a local directory would have shown it. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

static void say(const char *s)
{
	if (write(1, s, strlen(s)) < 0 || write(1, "\n", 1) < 0)
		_exit(9);
}

static void die(const char *what)
{
	char text[256];
	snprintf(text, sizeof text, "failed: %s: %s", what, strerror(errno));
	say(text);
	_exit(1);
}

static char path[4096];
static atomic_long failed, alarms, stop;

static const char *in(const char *dir, const char *fmt, ...)
{
	static _Thread_local char p[4096];
	int n = snprintf(p, sizeof p, "%s/", dir);
	va_list a;
	va_start(a, fmt);
	vsnprintf(p + n, sizeof p - n, fmt, a);
	va_end(a);
	return p;
}

static void *stat_one(void *unused)
{
	struct stat st;
	(void)unused;
	if (stat(path, &st) != 0)
		failed++;
	return NULL;
}

/* many PROCESSES×THREADS that stat one file each. */
static int many(int threads)
{
	pthread_attr_t a;
	pthread_t *t = calloc(threads, sizeof *t);

	pthread_attr_init(&a);
	pthread_attr_setstacksize(&a, 64 << 10);
	for (int i = 0; i < threads; i++)
		if ((errno = pthread_create(&t[i], &a, stat_one, NULL)))
			die("pthread_create");
	say("started");
	for (int i = 0; i < threads; i++)
		pthread_join(t[i], NULL);
	if (failed)
		die("stat");
	return 0;
}

static void on_alarm(int sig)
{
	(void)sig;
	alarms++;
}

static void alarm_every(long us)
{
	struct sigaction sa = { .sa_handler = on_alarm }; /* no SA_RESTART */
	struct itimerval every = { { 0, us }, { 0, us } };

	sigaction(SIGALRM, &sa, NULL);
	setitimer(ITIMER_REAL, &every, NULL);
}

/* Everything that can wait, with a signal arriving all the time. */
static int interrupted(void)
{
	char buf[16];
	struct stat st;
	int fd;

	alarm_every(5000);
	if (stat(path, &st) != 0)
		die("stat");
	if ((fd = open(path, O_RDWR)) < 0)
		die("open");
	if (read(fd, buf, sizeof buf) < 0)
		die("read");
	if (pwrite(fd, buf, 1, 0) != 1)
		die("write");
	if (fsync(fd) != 0)
		die("fsync");
	if (close(fd) != 0)
		die("close");
	if (!alarms)
		die("no alarm came");
	return 0;
}

/* Holds a file open with all that its end must give back. */
static _Noreturn void hold(void)
{
	struct flock l = { .l_type = F_WRLCK };
	char *p;
	int fd = open(path, O_RDWR);

	if (fd < 0)
		die("open");
	if (flock(fd, LOCK_EX) != 0)
		die("flock");
	if (fcntl(fd, F_SETLK, &l) != 0)
		die("fcntl");
	p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED)
		die("mmap");
	p[0] = 'x';
	say("held");
	for (;;)
		pause();
}

/* Waits for a record lock; a SIGUSR1 makes it give up. */
static int lockwait(void)
{
	struct flock l = { .l_type = F_WRLCK };
	struct sigaction sa = { .sa_handler = on_alarm };
	int fd = open(path, O_RDWR);

	sigaction(SIGUSR1, &sa, NULL);
	if (fd < 0)
		die("open");
	say("waiting");
	if (fcntl(fd, F_SETLKW, &l) == 0)
		say("locked");
	else if (errno == EINTR)
		say("EINTR");
	else
		die("fcntl");
	return 0;
}

static void on_term(int sig)
{
	(void)sig;
	stop = 1;
}

/* Writes, reads back, maps, renames, lists, until told to stop. */
static int load(const char *dir, int id)
{
	char name[2][64], line[64], back[64];
	long n = 0;
	char *p;
	int fd;
	struct sigaction sa = { .sa_handler = on_term, .sa_flags = SA_RESTART };

	sigaction(SIGTERM, &sa, NULL);
	snprintf(name[0], sizeof name[0], "a%d", id);
	snprintf(name[1], sizeof name[1], "b%d", id);
	fd = open(in(dir, "%s", name[0]), O_RDWR | O_CREAT | O_TRUNC, 0644);
	if (fd < 0)
		die("create");
	if (ftruncate(fd, 8192) != 0)
		die("ftruncate");
	p = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED)
		die("mmap");
	say("running");
	while (!stop) {
		struct stat st;
		int len = snprintf(line, sizeof line, "%d %ld\n", id, n);

		if (pwrite(fd, line, len, 0) != len)
			die("write");
		if (pread(fd, back, len, 0) != len)
			die("read");
		errno = 0;
		if (memcmp(line, back, len))
			die("read back something else");
		if (memcmp(p, line, len))
			die("mapping shows something else");
		memcpy(p + 4096, &n, sizeof n);
		if (pread(fd, back, sizeof n, 4096) != sizeof n)
			die("read of the mapped page");
		errno = 0;
		if (memcmp(back, &n, sizeof n))
			die("store into the mapping lost");
		if (rename(in(dir, "%s", name[n & 1]), strdupa(in(dir, "%s", name[~n & 1]))) != 0)
			die("rename");
		if (stat(in(dir, "%s", name[~n & 1]), &st) != 0 || st.st_size != 8192)
			die("stat");
		n++;
	}
	if (close(fd) != 0)
		die("close");
	snprintf(line, sizeof line, "%ld", n);
	say(line);
	return 0;
}

/* Touches every page of a mapping, for ever, on several threads: nothing but
 * the page cache keeps it from waiting. */
static atomic_ulong touches;

static void *touch_one(void *map)
{
	volatile char *p = map;
	for (;;)
		for (int i = 0; i < 64; i++) {
			p[i * 4096] = p[i * 4096] + 1;
			touches++;
		}
	return NULL;
}

static int touch(int report)
{
	pthread_t t;
	char *p;
	int fd = open(path, O_RDWR);

	if (fd < 0)
		die("open");
	p = mmap(NULL, 64 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED)
		die("mmap");
	for (int i = 0; i < 4; i++)
		if ((errno = pthread_create(&t, NULL, touch_one, p)))
			die("pthread_create");
	while (!touches)
		sched_yield();
	say("touching");
	for (;;) { /* answer each byte with the count */
		char c, line[32];
		if (read(report, &c, 1) != 1)
			return 0;
		snprintf(line, sizeof line, "%lu", touches);
		say(line);
	}
}

int main(int argc, char **argv)
{
	const char *mode = argc > 2 ? argv[1] : "";

	if (argc > 2)
		snprintf(path, sizeof path, "%s", argv[2]);
	if (!strcmp(mode, "many") && argc > 3)
		return many(atoi(argv[3]));
	if (!strcmp(mode, "interrupted"))
		return say("started"), interrupted();
	if (!strcmp(mode, "hold"))
		hold();
	if (!strcmp(mode, "lockwait"))
		return lockwait();
	if (!strcmp(mode, "load") && argc > 3)
		return load(argv[2], atoi(argv[3]));
	if (!strcmp(mode, "touch"))
		return touch(0);
	fprintf(stderr, "usage: client MODE PATH [NUMBER]\n");
	return 2;
}
