// SPDX-License-Identifier: Apache-2.0
/* What a packet's whole way through the kernel takes, from one socket to another.
 *
 *   way ADDRESS BATCHES POD REMOTE [POD REMOTE]...
 *
 * Namespaces of pods and of their remotes, which have ADDRESS. One thread holds the sockets of all of them: what it
 * sends is on its way within its own system call, and no scheduler is asked. Pairs take turns in short batches, so
 * others on the machine hit all of them alike. One line a pair and batch: pair, batch, nanoseconds of a datagram out,
 * of one back, and of a connection with a byte there and back.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MOST	    16  /* pairs */
#define DATAGRAMS   50  /* of a batch */
#define CONNECTIONS 5   /* of a batch */
#define PORTS	    256 /* that connections go to in turn, so that no translator runs out of its own */
#define FIRST_PORT  7000

struct pair {
	const char *pod_namespace;
	int pod, remote; /* datagrams */
	int listeners[PORTS];
	unsigned next;
	struct sockaddr_in6 seen; /* what the pod's datagrams come from */
};

static void fail(const char *what)
{
	fprintf(stderr, "way: error: %s: %s\n", what, strerror(errno));
	exit(1);
}

static int checked(int result, const char *what)
{
	if (result < 0)
		fail(what);
	return result;
}

static double now_ns(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1e9 + time.tv_nsec;
}

static void enter(const char *name)
{
	char path[256];
	int fd;

	snprintf(path, sizeof(path), "/run/netns/%s", name);
	fd = checked(open(path, O_RDONLY | O_CLOEXEC), path);
	checked(setns(fd, CLONE_NEWNET), path);
	close(fd);
}

/* A socket of the namespace that the thread is in; what is lost on the way fails, and does not hang. */
static int opened(int type)
{
	struct timeval patience = {.tv_sec = 2};
	int fd = checked(socket(AF_INET6, type, 0), "socket"), no = 0;

	checked(setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &no, sizeof(no)), "IPV6_V6ONLY");
	checked(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)), "SO_RCVTIMEO");
	checked(setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience)), "SO_SNDTIMEO");
	return fd;
}

static int bound(int type, int port)
{
	struct sockaddr_in6 address = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
	int fd = opened(type);

	checked(bind(fd, (struct sockaddr *)&address, sizeof(address)), "bind");
	return fd;
}

static void open_pair(struct pair *pair, const char *pod, const char *remote, struct sockaddr_in6 to)
{
	enter(remote);
	pair->remote = bound(SOCK_DGRAM, FIRST_PORT);
	for (int i = 0; i < PORTS; i++) {
		pair->listeners[i] = bound(SOCK_STREAM, FIRST_PORT + i);
		checked(listen(pair->listeners[i], CONNECTIONS), "listen");
	}
	enter(pod);
	pair->pod_namespace = pod;
	pair->pod = opened(SOCK_DGRAM);
	to.sin6_port = htons(FIRST_PORT);
	checked(connect(pair->pod, (struct sockaddr *)&to, sizeof(to)), "connect");
}

static double out(struct pair *pair)
{
	double began = now_ns();
	char data[64] = {0};

	for (int i = 0; i < DATAGRAMS; i++) {
		socklen_t size = sizeof(pair->seen);

		checked(send(pair->pod, data, sizeof(data), 0), "send");
		checked(recvfrom(pair->remote, data, sizeof(data), 0, (struct sockaddr *)&pair->seen, &size), "recvfrom");
	}
	return (now_ns() - began) / DATAGRAMS;
}

static double back(struct pair *pair)
{
	double began = now_ns();
	char data[64] = {0};

	for (int i = 0; i < DATAGRAMS; i++) {
		checked(sendto(pair->remote, data, sizeof(data), 0, (struct sockaddr *)&pair->seen, sizeof(pair->seen)),
			"sendto");
		checked(recv(pair->pod, data, sizeof(data), 0), "recv");
	}
	return (now_ns() - began) / DATAGRAMS;
}

/* Closed by a RST from the pod: neither end nor a translator remembers it for long. */
static double connections(struct pair *pair, struct sockaddr_in6 to)
{
	struct linger reset = {.l_onoff = 1};
	double began;
	char byte = 0;

	enter(pair->pod_namespace);
	began = now_ns();
	for (int i = 0; i < CONNECTIONS; i++) {
		unsigned turn = pair->next++ % PORTS;
		int client = opened(SOCK_STREAM), server;

		to.sin6_port = htons(FIRST_PORT + turn);
		checked(connect(client, (struct sockaddr *)&to, sizeof(to)), "connect");
		server = checked(accept(pair->listeners[turn], NULL, NULL), "accept");
		checked(send(client, &byte, 1, 0), "send");
		checked(recv(server, &byte, 1, 0), "recv");
		checked(send(server, &byte, 1, 0), "send");
		checked(recv(client, &byte, 1, 0), "recv");
		checked(setsockopt(client, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset)), "SO_LINGER");
		close(client);
		close(server);
	}
	return (now_ns() - began) / CONNECTIONS;
}

int main(int count, char **words)
{
	struct sockaddr_in6 to = {.sin6_family = AF_INET6};
	static struct pair pairs[MOST];
	int known = (count - 3) / 2, batches;
	char address[64];

	if (count < 5 || count % 2 == 0 || known > MOST) {
		fprintf(stderr, "usage: way ADDRESS BATCHES POD REMOTE [POD REMOTE]...\n");
		return 2;
	}
	snprintf(address, sizeof(address), strchr(words[1], ':') ? "%s" : "::ffff:%s", words[1]);
	if (inet_pton(AF_INET6, address, &to.sin6_addr) != 1)
		fail(words[1]);
	batches = atoi(words[2]);
	for (int i = 0; i < known; i++)
		open_pair(&pairs[i], words[3 + 2 * i], words[4 + 2 * i], to);
	for (int batch = 0; batch < batches; batch++) {
		for (int turn = 0; turn < known; turn++) {
			int i = (batch + turn) % known;
			double there = out(&pairs[i]), home = back(&pairs[i]);

			printf("%d %d %.0f %.0f %.0f\n", i, batch, there, home, connections(&pairs[i], to));
		}
	}
	return 0;
}
