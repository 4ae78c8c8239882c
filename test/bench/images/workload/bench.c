/* The program in the images of the pod benchmark. It uses no library and no memory but two
 * pages, since what it takes to start and to hold counts in the figures of every runtime.
 *
 *   bench wait       writes "ready", then waits for SIGTERM
 *   bench spam S L   writes numbered lines of L bytes for S seconds, 64 at a time, then how many
 *   bench tick MS    writes "tick" every MS milliseconds
 *   true             ends
 *   anything else    waits for SIGTERM (the pause program)
 *
 * It also reaps, as the first process of a process namespace has to.
 */
#if defined __x86_64__
enum { sys_write = 1, sys_sigprocmask = 14, sys_nanosleep = 35, sys_exit = 60, sys_wait4 = 61, sys_getrusage = 98, sys_sigtimedwait = 128, sys_clock_gettime = 228 };
static long call(long n, long a, long b, long c, long d) {
	long r;
	register long r10 __asm__("r10") = d;
	__asm__ volatile("syscall" : "=a"(r) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
	return r;
}
__asm__(".globl _start\n_start: xor %ebp,%ebp\nmov %rsp,%rdi\nand $-16,%rsp\ncall run\n");
#elif defined __aarch64__
enum { sys_write = 64, sys_sigprocmask = 135, sys_nanosleep = 101, sys_exit = 93, sys_wait4 = 260, sys_getrusage = 165, sys_sigtimedwait = 137, sys_clock_gettime = 113 };
static long call(long n, long a, long b, long c, long d) {
	register long x8 __asm__("x8") = n, x0 __asm__("x0") = a, x1 __asm__("x1") = b, x2 __asm__("x2") = c, x3 __asm__("x3") = d;
	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
	return x0;
}
__asm__(".globl _start\n_start: mov x29,#0\nmov x0,sp\nbl run\n");
#endif

enum { block = 64, longest = 16384, sigint = 2, sigterm = 15, sigchld = 17, interrupted = -4 };

struct span { long s, ns; };
struct usage { struct { long s, us; } user, sys; long rest[14]; };

static void end(int code) { for (;;) call(sys_exit, code, 0, 0, 0); }

static long now_us(void) {
	struct span t;
	call(sys_clock_gettime, 1, (long)&t, 0, 0);
	return t.s * 1000000 + t.ns / 1000;
}

static void put(const char *p, long n) {
	while (n > 0) {
		long w = call(sys_write, 1, (long)p, n, 0);
		if (w == interrupted) continue;
		if (w <= 0) end(1);
		p += w;
		n -= w;
	}
}

static int same(const char *a, const char *b) {
	while (*a && *a == *b) a++, b++;
	return *a == *b;
}

static long number(const char *p) {
	long n = 0;
	while (*p >= '0' && *p <= '9') n = n * 10 + *p++ - '0';
	return n;
}

/* digits writes n with at least so many digits, and returns the end. */
static char *digits(char *p, long n, int least) {
	char back[20];
	int k = 0;
	do back[k++] = '0' + n % 10; while ((n /= 10) > 0 || k < least);
	while (k) *p++ = back[--k];
	return p;
}

static char *word(char *p, const char *w) {
	while (*w) *p++ = *w++;
	return p;
}

static char lines[block * longest];

static void spam(long seconds, long len) {
	long begin = now_us(), until = begin + seconds * 1000000, n = 0;
	if (len < 16 || len > longest) end(2);
	for (long i = 0; i < len * block; i++) lines[i] = (i + 1) % len ? 'x' : '\n';
	while (now_us() < until) {
		for (long i = 0; i < block; i++) digits(lines + i * len, n++, 10);
		put(lines, len * block);
	}
	struct usage u;
	call(sys_getrusage, 0, (long)&u, 0, 0);
	char last[128], *p = digits(word(last, "total "), n, 1);
	p = digits(word(p, " cpu_us "), (u.user.s + u.sys.s) * 1000000 + u.user.us + u.sys.us, 1);
	p = word(digits(word(p, " elapsed_us "), now_us() - begin, 1), "\n");
	put(last, p - last);
	end(0);
}

/* await handles signals: for so long, or for ever. */
static void await(unsigned long set, struct span *limit) {
	for (;;) {
		long sig = call(sys_sigtimedwait, (long)&set, 0, (long)limit, 8);
		if (sig == sigint || sig == sigterm) end(0);
		if (sig == sigchld) while (call(sys_wait4, -1, 0, 1, 0) > 0) {}
		if (limit && sig < 0) return;
	}
}

__attribute__((used)) static void run(long *stack) {
	long argc = stack[0];
	char **argv = (char **)(stack + 1), *name = argv[0];
	for (char *p = name; *p; p++) if (*p == '/') name = p + 1;
	if (same(name, "true")) end(0);
	if (argc == 4 && same(argv[1], "spam")) spam(number(argv[2]), number(argv[3]));
	/* Blocked and waited for: no handler, no return from one. The first process of a
	 * namespace gets no signal that it neither handles nor waits for. */
	unsigned long set = 1ul << (sigint - 1) | 1ul << (sigterm - 1) | 1ul << (sigchld - 1);
	call(sys_sigprocmask, 0, (long)&set, 0, 8);
	if (argc == 3 && same(argv[1], "tick")) {
		long t = number(argv[2]);
		struct span limit = {t / 1000, t % 1000 * 1000000};
		for (;; await(set, &limit)) put("tick\n", 5);
	}
	if (argc == 2 && same(argv[1], "wait")) put("ready\n", 6);
	await(set, 0);
}
