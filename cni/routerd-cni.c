/* SPDX-License-Identifier: Apache-2.0 */
/* A CNI plugin (CNI 0.3 to 1.1) that asks the agent of this node and prints what it answers. Its name says
 * which: routerd-cni follows a main plugin in its chain; routerd-ipam is what a main plugin asks for a pod's
 * addresses, and has its settings in the section "ipam" of that plugin's configuration.
 *
 * Hosts need not have Python, and an interpreter takes longer to start than a pod may wait. So this program
 * frames bytes and knows no network: stdin and the CNI_* environment go to the agent's socket (cni/wire.py
 * has the form), the agent's answer goes to stdout, its exit code is ours. What it says itself is VERSION,
 * and what becomes of a request that no agent answers in time: ADD and CHECK are refused (code 11, "try again
 * later"), STATUS says 50 ("not available"); with "onAgentAbsent": "allow" the result of the plugins before
 * it stands (an address there cannot be without an agent: routerd-ipam has no such key). DEL and GC succeed,
 * or a node whose agent is away could not even end its pods; the agent hears of them by their absence.
 *
 * Input is anybody's: every length is bounded, nesting too, and nothing of it is copied but what was checked.
 */
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define CHAINED		"routerd-cni"
#define IPAM		"routerd-ipam"
#define CHAINED_SOCKET	"/run/routerd/cni.sock"
#define IPAM_SOCKET	"/run/routerd/ipam.sock"
#define DEFAULT_SECONDS 5
#define MOST_SECONDS	60
#define MOST_BYTES	(1 << 20) /* of a network configuration, and of an answer */
#define MOST_NESTING	64
#define NEWEST		"1.1.0"

/* Codes of errors: the specification's section "Error". */
enum {
	WRONG_VERSION = 1,
	WRONG_ENVIRONMENT = 4,
	IO_FAILURE = 5,
	NOT_DECODED = 6,
	WRONG_CONFIGURATION = 7,
	TRY_AGAIN = 11,
	NOT_AVAILABLE = 50,
};

static const char *const VERSIONS[] = {"0.3.0", "0.3.1", "0.4.0", "1.0.0", NEWEST};
static const char *const VARIABLES[] = {"CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS",
					"CNI_IFNAME",  "CNI_ARGS",	  "CNI_PATH"};
#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

struct span {
	const char *at; /* NULL = not given */
	size_t size;
};

/* What is read of a network configuration. */
enum { VERSION, SOCKET, ABSENT, TIMEOUT, PREVIOUS, SECTION };
static const char *const KEYS[] = {"cniVersion", "socket", "onAgentAbsent", "timeout", "prevResult", "ipam"};
static struct span members[COUNT(KEYS)];

static char input[MOST_BYTES + 1], answer[MOST_BYTES + 1];
static struct span version;
static bool is_ipam; /* by which name it was called */
static const char *socket_path;
static bool allow;
static long seconds = DEFAULT_SECONDS;
static struct span previous; /* the result of the plugins before */

static bool is(struct span text, const char *word)
{
	return text.at && text.size == strlen(word) && !memcmp(text.at, word, text.size);
}

static const char *known_version(void)
{
	for (size_t i = 0; i < COUNT(VERSIONS); i++)
		if (is(version, VERSIONS[i]))
			return VERSIONS[i];
	return NULL;
}

static const char *own_name(void)
{
	return is_ipam ? IPAM : CHAINED;
}

static void put_escaped(const char *text)
{
	for (; *text; text++) {
		unsigned char c = *text;
		if (c == '"' || c == '\\')
			printf("\\%c", c);
		else if (c < 0x20 || c > 0x7e)
			printf("\\u%04x", c);
		else
			putchar(c);
	}
}

/* Prints an error object and ends. */
__attribute__((format(printf, 3, 4))) static _Noreturn void fail(int code, const char *what,
								 const char *format, ...)
{
	char details[512];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(details, sizeof(details), format, arguments);
	va_end(arguments);
	printf("{\"cniVersion\":\"%s\",\"code\":%d,\"msg\":\"%s: ",
	       known_version() ? known_version() : NEWEST, code, own_name());
	put_escaped(what);
	printf("\",\"details\":\"");
	put_escaped(details);
	printf("\"}\n");
	fflush(stdout);
	exit(1);
}

/* --- JSON (RFC 8259): each function takes the first byte of a thing and returns what follows it, NULL if it
 * is none. The text ends with a zero byte, which is part of nothing. */

static const char *after_space(const char *p)
{
	return p + strspn(p, " \t\r\n");
}

static const char *after_string(const char *p)
{
	if (*p++ != '"')
		return NULL;
	for (; *p != '"'; p++) {
		if ((unsigned char)*p < 0x20)
			return NULL;
		if (*p != '\\')
			continue;
		p++;
		if (*p == 'u') {
			if (strspn(p + 1, "0123456789abcdefABCDEF") < 4)
				return NULL;
			p += 4;
		} else if (!*p || !strchr("\"\\/bfnrt", *p)) {
			return NULL;
		}
	}
	return p + 1;
}

static const char *after_digits(const char *p)
{
	size_t count = strspn(p, "0123456789");
	return count ? p + count : NULL;
}

static const char *after_number(const char *p)
{
	if (*p == '-')
		p++;
	p = *p == '0' ? p + 1 : after_digits(p);
	if (p && *p == '.')
		p = after_digits(p + 1);
	if (p && (*p == 'e' || *p == 'E')) {
		p++;
		p = after_digits(*p == '+' || *p == '-' ? p + 1 : p);
	}
	return p;
}

static const char *after_word(const char *p)
{
	static const char *const words[] = {"true", "false", "null"};
	for (size_t i = 0; i < COUNT(words); i++)
		if (!strncmp(p, words[i], strlen(words[i])))
			return p + strlen(words[i]);
	return NULL;
}

typedef void (*member)(struct span key, struct span value);

static const char *after_value(const char *p, int nesting, member each);

/* An object or array; `each` is told of its members, also of those before a mistake. */
static const char *after_items(const char *p, int nesting, member each)
{
	char close = *p == '{' ? '}' : ']';
	struct span key = {0}, value;

	p = after_space(p + 1);
	if (*p == close)
		return p + 1;
	for (;; p = after_space(p + 1)) {
		if (close == '}') {
			const char *end = after_string(p);
			if (!end)
				return NULL;
			key = (struct span){p + 1, (size_t)(end - p) - 2};
			p = after_space(end);
			if (*p++ != ':')
				return NULL;
		}
		value.at = after_space(p);
		p = after_value(value.at, nesting + 1, NULL);
		if (!p)
			return NULL;
		value.size = (size_t)(p - value.at);
		if (each)
			each(key, value);
		p = after_space(p);
		if (*p == close)
			return p + 1;
		if (*p != ',')
			return NULL;
	}
}

static const char *after_value(const char *p, int nesting, member each)
{
	if (nesting > MOST_NESTING)
		return NULL;
	switch (*p) {
	case '{':
	case '[':
		return after_items(p, nesting, each);
	case '"':
		return after_string(p);
	case 't':
	case 'f':
	case 'n':
		return after_word(p);
	}
	return after_number(p);
}

/* --- the network configuration */

/* Of a JSON string without escapes, which are of no use in what we read; a member that is another thing is
 * refused. */
static struct span text_of(struct span value, const char *key)
{
	if (*value.at != '"' || memchr(value.at, '\\', value.size))
		fail(WRONG_CONFIGURATION, "invalid network configuration", "%s is not a plain string", key);
	return (struct span){value.at + 1, value.size - 2};
}

static void read_socket(struct span path)
{
	static char copy[sizeof(((struct sockaddr_un *)0)->sun_path)];

	if (!path.size || path.size >= sizeof(copy) || *path.at != '/')
		fail(WRONG_CONFIGURATION, "invalid network configuration",
		     "socket is not an absolute path of less than %zu bytes", sizeof(copy));
	memcpy(copy, path.at, path.size);
	socket_path = copy;
}

static void read_absent(struct span word)
{
	allow = is(word, "allow");
	if (!allow && !is(word, "refuse"))
		fail(WRONG_CONFIGURATION, "invalid network configuration",
		     "onAgentAbsent is neither refuse nor allow");
}

static void read_timeout(struct span value)
{
	seconds = value.size <= 2 && after_digits(value.at) ? strtol(value.at, NULL, 10) : 0;
	if (seconds < 1 || seconds > MOST_SECONDS)
		fail(WRONG_CONFIGURATION, "invalid network configuration",
		     "timeout is no whole number of seconds from 1 to %d", MOST_SECONDS);
}

/* Of members that are there twice the last one counts, as for Go and Python. */
static void note_member(struct span key, struct span value)
{
	for (size_t i = 0; i < COUNT(KEYS); i++)
		if (is(key, KEYS[i]))
			members[i] = value;
}

/* Of the section that is an IPAM plugin's own. */
static void note_setting(struct span key, struct span value)
{
	if (is(key, KEYS[SOCKET]))
		members[SOCKET] = value;
	if (is(key, KEYS[TIMEOUT]))
		members[TIMEOUT] = value;
}

static void read_section(void)
{
	struct span section = members[SECTION];

	if (!section.at || *section.at != '{')
		fail(WRONG_CONFIGURATION, "invalid network configuration", "no section %s", KEYS[SECTION]);
	members[SOCKET] = members[ABSENT] = members[TIMEOUT] = (struct span){0};
	after_value(section.at, 0, note_setting);
}

static void read_members(void)
{
	if (members[VERSION].at)
		version = text_of(members[VERSION], KEYS[VERSION]);
	if (!known_version())
		fail(WRONG_VERSION, "incompatible CNI version", "0.3.0 to " NEWEST " are understood");
	if (is_ipam)
		read_section();
	if (members[SOCKET].at)
		read_socket(text_of(members[SOCKET], KEYS[SOCKET]));
	if (members[ABSENT].at)
		read_absent(text_of(members[ABSENT], KEYS[ABSENT]));
	if (members[TIMEOUT].at)
		read_timeout(members[TIMEOUT]);
	if (members[PREVIOUS].at && *members[PREVIOUS].at == '{')
		previous = members[PREVIOUS];
}

static size_t read_input(void)
{
	size_t size = 0;
	ssize_t count;

	while ((count = read(STDIN_FILENO, input + size, sizeof(input) - size)) != 0) {
		if (count < 0 && errno != EINTR)
			fail(IO_FAILURE, "cannot read the network configuration", "%s", strerror(errno));
		size += count > 0 ? (size_t)count : 0;
		if (size > MOST_BYTES)
			fail(NOT_DECODED, "the network configuration is too large", "more than %d bytes",
			     MOST_BYTES);
	}
	return size;
}

static void read_configuration(size_t size)
{
	const char *start = after_space(input);
	const char *end = *start == '{' ? after_value(start, 0, note_member) : NULL;

	if (!end || after_space(end) != input + size)
		fail(NOT_DECODED, "the network configuration is no JSON object", "of %zu bytes", size);
	read_members();
}

/* --- the agent */

static long long now(void) /* milliseconds */
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000LL + time.tv_nsec / 1000000;
}

/* Whether `descriptor` is ready before `deadline`. */
static bool wait_for(int descriptor, short what, long long deadline)
{
	struct pollfd one = {.fd = descriptor, .events = what};

	for (;;) {
		long long left = deadline - now();
		int ready = left > 0 ? poll(&one, 1, (int)left) : 0;
		if (ready >= 0 || errno != EINTR)
			return ready > 0;
	}
}

static int connected(long long deadline)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int descriptor = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	strcpy(address.sun_path, socket_path);
	while (descriptor >= 0 && connect(descriptor, (struct sockaddr *)&address, sizeof(address))) {
		if (errno != EAGAIN && errno != EINTR) /* EAGAIN: as many wait as the agent's queue holds */
			return -1;
		if (now() >= deadline)
			return -1;
		poll(NULL, 0, 10);
	}
	return descriptor;
}

static bool sent(int descriptor, const char *data, size_t size, long long deadline)
{
	while (size) {
		ssize_t count = send(descriptor, data, size, MSG_NOSIGNAL);
		if (count < 0 && errno == EAGAIN && wait_for(descriptor, POLLOUT, deadline))
			continue;
		if (count < 0 && errno != EINTR)
			return false;
		data += count > 0 ? count : 0;
		size -= count > 0 ? (size_t)count : 0;
	}
	return true;
}

/* NAME=VALUE and a zero byte for each variable, one more zero byte, the configuration, the end of the stream.
 */
static bool ask(int descriptor, size_t size, long long deadline)
{
	for (size_t i = 0; i < COUNT(VARIABLES); i++) {
		const char *value = getenv(VARIABLES[i]);
		if (value && !(sent(descriptor, VARIABLES[i], strlen(VARIABLES[i]), deadline) &&
			       sent(descriptor, "=", 1, deadline) &&
			       sent(descriptor, value, strlen(value) + 1, deadline)))
			return false;
	}
	return sent(descriptor, "", 1, deadline) && sent(descriptor, input, size, deadline) &&
	       !shutdown(descriptor, SHUT_WR);
}

/* "EXIT LENGTH\n" and so many bytes: an agent that dies while it answers has not answered. -1 = none came. */
static int heard(int descriptor, struct span *body, long long deadline)
{
	size_t size = 0;
	ssize_t count;
	char *end;
	long code, length;

	while ((count = read(descriptor, answer + size, MOST_BYTES - size)) != 0) {
		if (count < 0 && errno == EAGAIN && wait_for(descriptor, POLLIN, deadline))
			continue;
		if (count < 0 && errno != EINTR)
			return -1;
		size += count > 0 ? (size_t)count : 0;
	}
	code = strtol(answer, &end, 10);
	if (end == answer || *end != ' ' || code < 0 || code > 1)
		return -1;
	length = strtol(end, &end, 10);
	if (*end++ != '\n' || length < 0 || (size_t)length != size - (size_t)(end - answer))
		return -1;
	*body = (struct span){end, (size_t)length};
	return (int)code;
}

static void print(struct span text)
{
	if (fwrite(text.at, 1, text.size, stdout) != text.size || fflush(stdout))
		exit(1);
}

/* What becomes of a request that the agent has not answered. */
static int without_agent(const char *command)
{
	bool adds = !strcmp(command, "ADD");

	if (!strcmp(command, "DEL") || !strcmp(command, "GC"))
		return 0;
	if (!allow)
		fail(strcmp(command, "STATUS") ? TRY_AGAIN : NOT_AVAILABLE,
		     "the agent of routerd does not answer", "%s, within %ld s: is `routerd agent` running?",
		     socket_path, seconds);
	if (adds && !previous.at)
		fail(WRONG_CONFIGURATION, "invalid network configuration",
		     "no prevResult: it is no main plugin");
	if (adds)
		print(previous);
	return 0;
}

/* Whatever is wrong with the configuration. */
static void print_versions(void)
{
	after_value(after_space(input), 0, note_member);
	if (members[VERSION].at && *members[VERSION].at == '"')
		version = text_of(members[VERSION], KEYS[VERSION]);
	printf("{\"cniVersion\":\"%s\",\"supportedVersions\":[", known_version() ? known_version() : NEWEST);
	for (size_t i = 0; i < COUNT(VERSIONS); i++)
		printf("%s\"%s\"", i ? "," : "", VERSIONS[i]);
	printf("]}\n");
}

static bool is_called(const char *path, const char *name)
{
	const char *slash = path ? strrchr(path, '/') : NULL;
	return path && !strcmp(slash ? slash + 1 : path, name);
}

int main(int count, char **arguments)
{
	const char *command = getenv("CNI_COMMAND");
	struct span body;
	long long deadline;
	int descriptor, code;
	size_t size;

	is_ipam = count > 0 && is_called(arguments[0], IPAM);
	socket_path = is_ipam ? IPAM_SOCKET : CHAINED_SOCKET;
	size = read_input();

	if (!command || !*command)
		fail(WRONG_ENVIRONMENT, "no CNI_COMMAND",
		     "it is a CNI plugin, to be run by a container runtime");
	if (!strcmp(command, "VERSION")) {
		print_versions();
		return 0;
	}
	read_configuration(size);
	deadline = now() + seconds * 1000;
	descriptor = connected(deadline);
	code = descriptor >= 0 && ask(descriptor, size, deadline) ? heard(descriptor, &body, deadline) : -1;
	if (code < 0)
		return without_agent(command);
	print(body);
	return code;
}
