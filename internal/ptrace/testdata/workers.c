// Four threads that check themselves without a pause: sums in red zones and
// vector registers, sleeps, pipes, handlers on their own stacks. A line
// "wrong: ..." and exit status 1 follow the first thing that is not as it must
// be. SIGUSR2 ends it: "fine N" and status 0.
#define _GNU_SOURCE
#include <errno.h>
#include <immintrin.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/select.h>
#include <time.h>
#include <unistd.h>

static atomic_ulong rounds;
static atomic_int ending;

#define CHECK(cond) \
	do { if (!(cond)) { printf("wrong: line %d: %s (errno %d)\n", __LINE__, #cond, errno); fflush(stdout); _exit(1); } } while (0)

// A leaf whose locals are below the stack pointer, and that depends on flags.
__attribute__((noinline)) static uint64_t redzone(uint64_t seed)
{
	volatile uint64_t v[14];
	for (int i = 0; i < 14; i++)
		v[i] = seed = seed * 6364136223846793005ull + 1442695040888963407ull;
	uint64_t sum = 0;
	for (int n = 0; n < 200; n++)
		for (int i = 0; i < 14; i++) {
			uint64_t x = v[i];
			unsigned char carry = __builtin_add_overflow(sum, x, &sum);
			sum += carry;
		}
	return sum;
}

__attribute__((noinline)) static double vectors(double seed)
{
	__m128d a = _mm_set_pd(seed, seed + 1), b = _mm_set_pd(0.5, 0.25);
	for (int i = 0; i < 2000; i++)
		a = _mm_add_pd(_mm_mul_pd(a, b), _mm_set_pd(i, -i));
	double out[2];
	_mm_storeu_pd(out, a);
	return out[0] + out[1];
}

static void *compute(void *arg)
{
	(void)arg;
	uint64_t want = redzone(42);
	double wantv = vectors(3);
	while (!ending) {
		CHECK(redzone(42) == want);
		CHECK(vectors(3) == wantv);
		rounds++;
	}
	return 0;
}

static void *sleeper(void *arg)
{
	(void)arg;
	int ep = epoll_create1(0);
	for (unsigned n = 0; !ending; n++) {
		struct timespec ts = {0, 300000}, before, after;
		struct timeval tv = {0, 300};
		struct epoll_event ev;
		clock_gettime(CLOCK_MONOTONIC, &before);
		switch (n % 5) {
		case 0: CHECK(nanosleep(&ts, 0) == 0); break;
		case 1: CHECK(poll(0, 0, 1) == 0); break;
		case 2: CHECK(select(0, 0, 0, 0, &tv) == 0); break;
		case 3: CHECK(epoll_wait(ep, &ev, 1, 1) == 0); break;
		case 4: CHECK(ppoll(0, 0, &ts, 0) == 0); break;
		}
		clock_gettime(CLOCK_MONOTONIC, &after);
		long ns = (after.tv_sec - before.tv_sec) * 1000000000l + after.tv_nsec - before.tv_nsec;
		CHECK(ns >= 250000);
		rounds++;
	}
	return 0;
}

static int fds[2];

static void *reader(void *arg)
{
	(void)arg;
	for (uint32_t want = 0, got; !ending; want++) {
		CHECK(read(fds[0], &got, sizeof got) == sizeof got);
		CHECK(got == want || ending);
		rounds++;
	}
	return 0;
}

static atomic_ulong handled;
static void handler(int sig)
{
	(void)sig;
	uint64_t on_stack[64];
	memset(on_stack, 0xee, sizeof on_stack);
	__asm__ volatile("" ::"r"(on_stack) : "memory");
	handled++;
}

static void *signalled(void *arg)
{
	(void)arg;
	stack_t ss = {.ss_sp = malloc(65536), .ss_size = 65536};
	CHECK(sigaltstack(&ss, 0) == 0);
	uint64_t want = redzone(7);
	for (uint32_t n = 0; !ending; n++) {
		unsigned long before = handled;
		CHECK(raise(SIGUSR1) == 0);
		CHECK(handled == before + 1);
		CHECK(redzone(7) == want);
		if (n % 8 == 0) {
			static uint32_t sent;
			CHECK(write(fds[1], &sent, sizeof sent) == sizeof sent);
			sent++;
		}
		rounds++;
	}
	uint32_t last = 0;
	CHECK(write(fds[1], &last, sizeof last) == sizeof last);
	return 0;
}

int main(void)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	struct sigaction sa = {.sa_handler = handler, .sa_flags = SA_ONSTACK};
	CHECK(sigaction(SIGUSR1, &sa, 0) == 0);
	sigset_t set, mask;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	CHECK(pthread_sigmask(SIG_BLOCK, &set, 0) == 0);
	CHECK(pipe(fds) == 0);
	void *(*all[])(void *) = {compute, sleeper, reader, signalled};
	pthread_t t[4];
	for (int i = 0; i < 4; i++)
		CHECK(pthread_create(&t[i], 0, all[i], 0) == 0);
	printf("ready\n");
	fflush(stdout);
	int sig;
	CHECK(sigwait(&set, &sig) == 0 && sig == SIGUSR2);
	ending = 1;
	for (int i = 0; i < 4; i++)
		pthread_join(t[i], 0);
	CHECK(pthread_sigmask(SIG_BLOCK, 0, &mask) == 0);
	CHECK(sigismember(&mask, SIGUSR2) == 1 && sigismember(&mask, SIGUSR1) == 0);
	printf("fine %lu\n", (unsigned long)rounds);
	return 0;
}
