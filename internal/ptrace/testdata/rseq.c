// A restartable sequence in a loop, that takes some time before it commits. Who
// is interrupted inside must not commit, but go to the abort handler. SIGTERM
// ends it: "commits N aborts N".
#define _GNU_SOURCE
#include <linux/rseq.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/rseq.h>
#include <unistd.h>

static volatile sig_atomic_t ending;
static void end(int s) { (void)s; ending = 1; }

int main(void)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	signal(SIGTERM, end);
	struct rseq *rs = (struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset);
	if (__rseq_size == 0 || (int)rs->cpu_id < 0) {
		printf("no rseq\n");
		return 1;
	}
	uint64_t commits = 0, aborts = 0;
	printf("ready\n");
	fflush(stdout);
	while (!ending) {
		uint64_t n = 3000, aborted = 0;
		__asm__ volatile(
			".pushsection __rseq_cs, \"aw\"\n"
			".balign 32\n"
			"9: .long 0, 0\n"
			".quad 1f, 2f - 1f, 4f\n"
			".popsection\n"
			"leaq 9b(%%rip), %%rax\n"
			"movq %%rax, %[cs]\n"
			"1:\n"
			"8: decq %[n]\n"
			"jnz 8b\n"
			"incq %[commits]\n"
			"2:\n"
			".pushsection __rseq_failure, \"ax\"\n"
			".byte 0x0f, 0xb9, 0x3d\n"
			".long 0x53053053\n"
			"4: movq $1, %[aborted]\n"
			"jmp 2b\n"
			".popsection\n"
			: [n] "+r"(n), [aborted] "+r"(aborted), [cs] "=m"(rs->rseq_cs), [commits] "+m"(commits)
			:: "rax", "memory", "cc");
		aborts += aborted;
	}
	printf("commits %lu aborts %lu\n", commits, aborts);
	return 0;
}
