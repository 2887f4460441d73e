// SPDX-License-Identifier: Apache-2.0
/* BPF_PROG_TEST_RUN on one packet after the other, one run a call: between two calls of an interpreter the caches
 * would hold the interpreter.
 */
#include <linux/bpf.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Frames of `size` bytes, one behind the other. Returns how many of them ran; nanoseconds and verdict of each. */
unsigned run_each(int program, const unsigned char *frames, unsigned size, unsigned count, const void *context,
		  unsigned context_size, unsigned *nanoseconds, int *verdicts)
{
	unsigned i;

	for (i = 0; i < count; i++) {
		union bpf_attr run;

		memset(&run, 0, sizeof(run));
		run.test.prog_fd = program;
		run.test.data_in = (unsigned long)(frames + (unsigned long)i * size);
		run.test.data_size_in = size;
		run.test.ctx_in = (unsigned long)context;
		run.test.ctx_size_in = context_size;
		run.test.repeat = 1;
		if (syscall(__NR_bpf, BPF_PROG_TEST_RUN, &run, sizeof(run)))
			return i;
		nanoseconds[i] = run.test.duration;
		verdicts[i] = (int)run.test.retval;
	}
	return count;
}
