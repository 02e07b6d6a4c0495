// A closed-loop HTTP/1.1 load generator: CONNECTIONS keep-alive connections, one request at a time each, for SECONDS.
//
// Written in C so that the generator costs two to three microseconds a request and not fifteen: it shares the machine
// with what it measures. Prints one JSON line; `cpu_us` is its own processor time per request. Not a general client: it
// understands content-length and chunked bodies of bounded size, and counts anything else as an error.
//
//     load PORT CONNECTIONS SECONDS PATH
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { BUFFER = 65536, CONNECTIONS_MAX = 256, SAMPLES_MAX = 2000000 };

typedef struct { int fd; size_t used; uint64_t sent_ns; char data[BUFFER]; } Connection;

static Connection connections[CONNECTIONS_MAX];
static uint32_t samples_us[SAMPLES_MAX];
static size_t samples;
static uint64_t errors, not_ok;
static char request[1024];
static size_t request_length;
static struct sockaddr_in server;

static uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void begin(Connection *c) {
  c->used = 0;
  c->sent_ns = now_ns();
  if (write(c->fd, request, request_length) != (ssize_t)request_length) errors++;
}

static void open_connection(Connection *c, int poller) {
  int one = 1;
  c->fd = socket(AF_INET, SOCK_STREAM, 0);
  if (connect(c->fd, (struct sockaddr *)&server, sizeof server)) { perror("connect"); exit(1); }
  setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
  epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &e);
  begin(c);
}

// 1: the response is whole, 0: not yet, -1: not understood.
static int whole(Connection *c) {
  char *end = memmem(c->data, c->used, "\r\n\r\n", 4);
  if (!end) return c->used == BUFFER ? -1 : 0;
  size_t head = (size_t)(end - c->data) + 4;
  char saved = *end;
  *end = 0;
  char *length = strcasestr(c->data, "\r\ncontent-length:"), *chunked = strcasestr(c->data, "\r\ntransfer-encoding: chunked");
  long size = length ? atol(length + 17) : 0;
  *end = saved;
  if (length) return c->used >= head + (size_t)size;
  if (!chunked) return -1;
  return c->used >= head + 5 && memcmp(c->data + c->used - 5, "0\r\n\r\n", 5) == 0;
}

static void readable(Connection *c, int poller, int go_on) {
  ssize_t got = read(c->fd, c->data + c->used, BUFFER - c->used);
  if (got < 0 && errno == EAGAIN) return;
  int state = -1;
  if (got > 0) {
    c->used += (size_t)got;
    state = whole(c);
    if (state == 0) return;
  }
  if (state < 0) {
    errors++;
    close(c->fd);
    if (go_on) open_connection(c, poller);
    return;
  }
  if (memcmp(c->data + 9, "200", 3)) not_ok++;
  if (samples < SAMPLES_MAX) samples_us[samples++] = (uint32_t)((now_ns() - c->sent_ns) / 1000);
  if (go_on) begin(c);
}

static int by_size(const void *a, const void *b) {
  uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
  return x < y ? -1 : x > y;
}

int main(int argc, char **argv) {
  if (argc != 5) return 2;
  int count = atoi(argv[2]);
  if (count < 1 || count > CONNECTIONS_MAX) return 2;
  uint64_t span = (uint64_t)(atof(argv[3]) * 1e9);
  server.sin_family = AF_INET;
  server.sin_port = htons((uint16_t)atoi(argv[1]));
  server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  request_length = (size_t)snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n", argv[4]);

  int poller = epoll_create1(0);
  uint64_t start = now_ns(), at = start;
  for (int i = 0; i < count; i++) open_connection(&connections[i], poller);
  struct epoll_event ready[64];
  while ((at = now_ns()) - start < span) {
    int n = epoll_wait(poller, ready, 64, 50);
    for (int i = 0; i < n; i++) readable(ready[i].data.ptr, poller, 1);
  }
  struct rusage used;
  getrusage(RUSAGE_SELF, &used);
  double cpu_us = (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) * 1e6 + (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec);
  qsort(samples_us, samples, sizeof *samples_us, by_size);
  size_t last = samples ? samples - 1 : 0;
  printf("{\"requests\": %zu, \"errors\": %llu, \"not_ok\": %llu, \"seconds\": %.4f, \"p50_us\": %u, \"p99_us\": %u, \"cpu_us\": %.3f}\n",
         samples, (unsigned long long)errors, (unsigned long long)not_ok, (double)(at - start) / 1e9,
         samples_us[last / 2], samples_us[last * 99 / 100], samples ? cpu_us / (double)samples : 0.0);
  return 0;
}
