// SPDX-License-Identifier: Apache-2.0
/* Load generator of the egress bench: one TCP stream, one byte there and back, connections one after the other, UDP
 * datagrams of 64 bytes.
 *
 *   load serve                         until it is killed; says "ready"
 *   load who ADDRESS                   prints the source address that the server saw
 *   load stream|rr|conn|udp ADDRESS SECONDS
 *                                      prints bytes, transactions, connections or datagrams a second, as the server
 *                                      got them
 *
 * Addresses of either family. The client runs on the first CPU that it may use, and so does the server where one waits
 * for the other: to wake another CPU takes longer than any datapath. The sink of a stream and of datagrams runs on the
 * last CPU. Connections are closed by the client first and go to PORTS ports in turn, so that neither its own ports nor
 * a translator's are used up by what is still in TIME_WAIT.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define STREAM_PORT 5001
#define RR_PORT	    5002
#define UDP_PORT    5003
#define TELL_PORT   5004
#define CONN_PORT   6000
#define PORTS	    256
#define DATAGRAM    64
#define MESSAGES    64
#define IDLE	    0.05     /* seconds without a datagram: nobody sends */
#define DRAIN_NS    50000000 /* until the last datagrams have been counted */

struct told { /* to each who connects to TELL_PORT */
	uint64_t datagrams;
	char source[64];
};

static void fail(const char *what)
{
	fprintf(stderr, "load: error: %s: %s\n", what, strerror(errno));
	exit(1);
}

static int checked(int result, const char *what)
{
	if (result < 0)
		fail(what);
	return result;
}

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

static cpu_set_t may; /* as it was at the start */

static void pin(int last)
{
	cpu_set_t on;
	int found = -1;

	for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
		if (CPU_ISSET(cpu, &may) && (found < 0 || last))
			found = cpu;
	CPU_ZERO(&on);
	CPU_SET(found, &on);
	checked(sched_setaffinity(0, sizeof(on), &on), "sched_setaffinity");
}

static void set(int fd, int level, int option, int value)
{
	checked(setsockopt(fd, level, option, &value, sizeof(value)), "setsockopt");
}

/* --- server ---------------------------------------------------------------------------------------------- */

static int bound(int type, int port)
{
	struct sockaddr_in6 address = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
	int fd = checked(socket(AF_INET6, type, 0), "socket");

	set(fd, IPPROTO_IPV6, IPV6_V6ONLY, 0);
	set(fd, SOL_SOCKET, SO_REUSEADDR, 1);
	checked(bind(fd, (struct sockaddr *)&address, sizeof(address)), "bind");
	if (type == SOCK_STREAM)
		checked(listen(fd, 1024), "listen");
	return fd;
}

static void serve_stream(int listener)
{
	static char data[1 << 18];

	for (;;) {
		int fd = checked(accept(listener, NULL, NULL), "accept");
		uint64_t total = 0;
		ssize_t got;

		while ((got = read(fd, data, sizeof(data))) > 0)
			total += got;
		if (!got && write(fd, &total, sizeof(total)) != sizeof(total))
			fprintf(stderr, "load: warning: a client has gone\n");
		close(fd);
	}
}

static void serve_rr(int listener)
{
	for (;;) {
		int fd = checked(accept(listener, NULL, NULL), "accept");
		char byte;

		set(fd, IPPROTO_TCP, TCP_NODELAY, 1);
		while (read(fd, &byte, 1) == 1 && write(fd, &byte, 1) == 1)
			;
		close(fd);
	}
}

static void serve_conn(const int *listeners)
{
	int epoll = checked(epoll_create1(0), "epoll_create1");

	for (int i = 0; i < PORTS; i++) {
		struct epoll_event event = {.events = EPOLLIN, .data.fd = listeners[i]};

		checked(epoll_ctl(epoll, EPOLL_CTL_ADD, listeners[i], &event), "epoll_ctl");
	}
	for (;;) {
		struct epoll_event event;
		char byte;
		int fd;

		checked(epoll_wait(epoll, &event, 1, -1), "epoll_wait");
		fd = checked(accept(event.data.fd, NULL, NULL), "accept");
		if (read(fd, &byte, 1) == 1 && write(fd, &byte, 1) == 1)
			(void)!read(fd, &byte, 1); /* the client's end */
		close(fd);
	}
}

static void serve_udp(int fd, uint64_t *datagrams)
{
	static char data[MESSAGES][DATAGRAM];
	struct mmsghdr messages[MESSAGES];
	struct iovec parts[MESSAGES];

	memset(messages, 0, sizeof(messages));
	for (int i = 0; i < MESSAGES; i++) {
		parts[i] = (struct iovec){data[i], DATAGRAM};
		messages[i].msg_hdr.msg_iov = &parts[i];
		messages[i].msg_hdr.msg_iovlen = 1;
	}
	set(fd, SOL_SOCKET, SO_RCVBUFFORCE, 16 << 20);
	for (;;) {
		double last = now();
		int flags = MSG_WAITFORONE;

		/* While they come it does not sleep: the sender's CPU would have to wake it. */
		while (!(flags & MSG_DONTWAIT) || now() - last < IDLE) {
			int got = recvmmsg(fd, messages, MESSAGES, flags, NULL);

			if (got < 0 && errno != EAGAIN)
				fail("recvmmsg");
			if (got > 0) {
				last = now();
				__atomic_fetch_add(datagrams, got, __ATOMIC_RELAXED);
			}
			flags = MSG_DONTWAIT;
		}
	}
}

static void serve_told(int listener, uint64_t *datagrams)
{
	for (;;) {
		struct sockaddr_in6 peer;
		socklen_t size = sizeof(peer);
		int fd = checked(accept(listener, (struct sockaddr *)&peer, &size), "accept");
		struct told told = {.datagrams = __atomic_load_n(datagrams, __ATOMIC_RELAXED)};

		getnameinfo((struct sockaddr *)&peer, size, told.source, sizeof(told.source), NULL, 0, NI_NUMERICHOST);
		if (write(fd, &told, sizeof(told)) != sizeof(told))
			fprintf(stderr, "load: warning: a client has gone\n");
		close(fd);
	}
}

static int forked(void)
{
	int child = checked(fork(), "fork");

	if (!child)
		prctl(PR_SET_PDEATHSIG, SIGKILL);
	return !child;
}

static int serve(void)
{
	uint64_t *datagrams = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int stream = bound(SOCK_STREAM, STREAM_PORT), rr = bound(SOCK_STREAM, RR_PORT);
	int told = bound(SOCK_STREAM, TELL_PORT), udp = bound(SOCK_DGRAM, UDP_PORT);
	int conn[PORTS];

	if (datagrams == MAP_FAILED)
		fail("mmap");
	for (int i = 0; i < PORTS; i++)
		conn[i] = bound(SOCK_STREAM, CONN_PORT + i);
	signal(SIGPIPE, SIG_IGN);
	pin(1);
	if (forked())
		serve_stream(stream);
	if (forked())
		serve_udp(udp, datagrams);
	pin(0);
	if (forked())
		serve_rr(rr);
	if (forked())
		serve_conn(conn);
	if (forked())
		serve_told(told, datagrams);
	puts("ready");
	fflush(stdout);
	wait(NULL);
	return 1; /* a child has failed */
}

/* --- client ---------------------------------------------------------------------------------------------- */

static struct addrinfo *remote; /* the server, of whichever family */

static void resolve(const char *address)
{
	struct addrinfo hints = {.ai_flags = AI_NUMERICHOST};

	if (getaddrinfo(address, NULL, &hints, &remote))
		fail(address);
}

static int connected(int type, int port)
{
	int fd = checked(socket(remote->ai_family, type, 0), "socket");

	/* The port stands at the same place in both families' structures. */
	((struct sockaddr_in *)remote->ai_addr)->sin_port = htons(port);
	checked(connect(fd, remote->ai_addr, remote->ai_addrlen), "connect");
	return fd;
}

static void read_all(int fd, void *data, size_t size)
{
	ssize_t got = recv(fd, data, size, MSG_WAITALL);

	if (got != (ssize_t)size)
		fail("the server's answer");
}

static struct told ask(void)
{
	int fd = connected(SOCK_STREAM, TELL_PORT);
	struct told told;

	read_all(fd, &told, sizeof(told));
	close(fd);
	return told;
}

static double stream(double seconds)
{
	static char data[1 << 17];
	int fd = connected(SOCK_STREAM, STREAM_PORT);
	double began = now();
	uint64_t total;

	while (now() - began < seconds)
		checked(write(fd, data, sizeof(data)), "write");
	shutdown(fd, SHUT_WR);
	read_all(fd, &total, sizeof(total));
	close(fd);
	return total / (now() - began);
}

static double rr(double seconds)
{
	int fd = connected(SOCK_STREAM, RR_PORT);
	double began = now();
	uint64_t count = 0;
	char byte = 0;

	set(fd, IPPROTO_TCP, TCP_NODELAY, 1);
	for (; now() - began < seconds; count++) {
		checked(write(fd, &byte, 1), "write");
		read_all(fd, &byte, 1);
	}
	close(fd);
	return count / (now() - began);
}

static double conn(double seconds)
{
	double began = now();
	uint64_t count = 0;
	char byte = 0;

	for (; now() - began < seconds; count++) {
		int fd = connected(SOCK_STREAM, CONN_PORT + count % PORTS);

		checked(write(fd, &byte, 1), "write");
		read_all(fd, &byte, 1);
		close(fd);
	}
	return count / (now() - began);
}

static double udp(double seconds)
{
	struct timespec drain = {.tv_nsec = DRAIN_NS};
	uint64_t before = ask().datagrams;
	int fd = connected(SOCK_DGRAM, UDP_PORT);
	double began = now(), took;
	char data[DATAGRAM] = "";

	while (now() - began < seconds)
		if (send(fd, data, sizeof(data), 0) < 0 && errno != ENOBUFS)
			fail("send");
	took = now() - began;
	close(fd);
	nanosleep(&drain, NULL);
	return (ask().datagrams - before) / took;
}

int main(int count, char **words)
{
	static const struct {
		const char *name;
		double (*run)(double seconds);
	} loads[] = {{"stream", stream}, {"rr", rr}, {"conn", conn}, {"udp", udp}};

	checked(sched_getaffinity(0, sizeof(may), &may), "sched_getaffinity");
	if (count == 2 && !strcmp(words[1], "serve"))
		return serve();
	if (count > 2)
		resolve(words[2]);
	if (count == 3 && !strcmp(words[1], "who"))
		return puts(ask().source) < 0;
	for (size_t i = 0; count == 4 && i < sizeof(loads) / sizeof(*loads); i++)
		if (!strcmp(words[1], loads[i].name)) {
			pin(0);
			printf("%.1f\n", loads[i].run(atof(words[3])));
			return 0;
		}
	fprintf(stderr, "usage: load serve | load who ADDRESS | load stream|rr|conn|udp ADDRESS SECONDS\n");
	return 2;
}
