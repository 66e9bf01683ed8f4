/*
 * sseload - a small epoll load client for HTTP/1.1 Server-Sent Events.
 *
 * One file, no dependencies:  gcc -O2 -Wall -Wextra -std=gnu11 -o sseload sseload.c -lpthread
 * The options are in usage(); support/sseload.py compiles it, runs it and says what its figures mean.
 *
 * It opens N connections, sends one request on each, decodes chunked / content-length / close-delimited
 * bodies, splits the body into SSE fields, counts dispatched events (a blank line after at least one
 * data: field), takes the timestamp inside the data to compute latency, and reports.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define LINE_MAX_KEEP 4096   /* bytes of one SSE line that are kept (the rest is counted, not stored) */
#define HDR_MAX 16384
#define ID_MAX_LEN 128
#define TOKEN_MAX 48         /* bytes of one @MICROSECONDS.NUMBER; */

/* ------------------------------------------------------------------ histogram (log-linear, microseconds) */
#define H_SUB 64             /* linear sub-buckets per power of two: under 1.6 % error */
#define H_POW 40
typedef struct { uint64_t n, b[H_POW * H_SUB]; double sum; uint64_t max; } hist_t;

static int hist_idx(uint64_t v) {
  if (v < H_SUB) return (int)v;
  int p = 63 - __builtin_clzll(v);                 /* v in [2^p, 2^(p+1)) , p >= 6 */
  int sub = (int)((v >> (p - 6)) & (H_SUB - 1));
  int i = (p - 5) * H_SUB + sub;
  return i < H_POW * H_SUB ? i : H_POW * H_SUB - 1;
}
static uint64_t hist_val(int i) {
  if (i < H_SUB) return (uint64_t)i;
  int p = i / H_SUB + 5, sub = i % H_SUB;
  return ((uint64_t)(H_SUB + sub)) << (p - 6);
}
static void hist_add(hist_t *h, uint64_t v) { h->n++; h->sum += (double)v; if (v > h->max) h->max = v; h->b[hist_idx(v)]++; }
static void hist_merge(hist_t *a, const hist_t *b) {
  a->n += b->n; a->sum += b->sum; if (b->max > a->max) a->max = b->max;
  for (int i = 0; i < H_POW * H_SUB; i++) a->b[i] += b->b[i];
}
static double hist_q(const hist_t *h, double q) {
  if (!h->n) return 0;
  uint64_t want = (uint64_t)(q * (double)h->n + 0.999999), c = 0; if (want < 1) want = 1;
  for (int i = 0; i < H_POW * H_SUB; i++) { c += h->b[i]; if (c >= want) { uint64_t v = hist_val(i); return (double)(v < h->max ? v : h->max); } }
  return (double)h->max;
}

/* ------------------------------------------------------------------ options */
static struct {
  const char *host; int port; const char *path; const char *method; const char *body;
  int conns, threads; double duration, warmup; double ramp;
  const char *hdr[64]; int nhdr;
  const char *tskey; int json, reconnect, seq, quiet, recvbuf, src_ips; double reconnect_delay;
  uint64_t expect; double slow_bps; double interval; const char *stop_event; int ready_wait; int dump;
  int pids[64]; int npids; double linger; int modulo; double close_after; int tokens, go; const char *token_event;
  int *ports; char **paths;                /* --to: of each connection */
} O = { .host = "127.0.0.1", .port = 8000, .path = "/", .method = "GET", .conns = 100, .threads = 1,
        .duration = 10, .warmup = 0, .ramp = 2000, .tskey = "ts", .reconnect_delay = 0.2, .interval = 0, .src_ips = 1 };

/* ------------------------------------------------------------------ time */
static uint64_t now_ns(clockid_t c) { struct timespec t; clock_gettime(c, &t); return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec; }
#define MONO() now_ns(CLOCK_MONOTONIC)
#define REAL() now_ns(CLOCK_REALTIME)

/* ------------------------------------------------------------------ connection */
enum { C_IDLE, C_CONNECTING, C_HEADERS, C_BODY, C_DONE };
enum { B_CLOSE, B_LENGTH, B_CHUNKED };
enum { K_SIZE, K_EXT, K_LF, K_DATA, K_DATA_CR, K_DATA_LF, K_TRAILER, K_END };

typedef struct {
  int fd, state, bodymode, kst; int trailer_len;
  uint64_t remain;                 /* body bytes left in the chunk / by content-length */
  int status, ksize_digits;
  char *out; size_t outlen, outpos;
  char hdr[HDR_MAX]; size_t hlen;
  char line[LINE_MAX_KEEP]; size_t llen; int last_cr;
  int has_data, is_stop; int64_t evt_ts_ns; uint64_t ndata;
  char id[ID_MAX_LEN]; char pend_id[ID_MAX_LEN]; int has_pend_id; int64_t last_seq; int have_seq;
  char ev[64], tok[TOKEN_MAX]; size_t ntok; int64_t last_tok; int have_tok; uint64_t tokens;
  uint64_t events; uint64_t t_start, t_hdr; uint64_t due; int idx; int counted_open; uint64_t next_read;
} conn_t;

typedef struct {
  pthread_t th; int ep, tid, nconn; conn_t *c;
  hist_t lat, ttfb;
  uint64_t events, all_events, comments, wire, body, connects, conn_err, http_err, early_close, parse_err, reconnects, gaps, dups, reorders, stops, read_err, no_ts, eof_ok, named, tokens, all_tokens;
  int open; char first_err[200];
  double cpu_us;
} th_t;

static volatile int g_stop, g_measure, g_go;
static volatile uint64_t g_open;          /* connections past the response header */
static struct sockaddr_storage g_addr; static socklen_t g_addrlen;

static void err(th_t *t, const char *fmt, ...) {
  if (t->first_err[0]) return;
  va_list ap; va_start(ap, fmt); vsnprintf(t->first_err, sizeof t->first_err, fmt, ap); va_end(ap);
}

/* replaces {i} by the connection number and {m} by the connection number modulo --modulo */
static char *subst(const char *s, int i) {
  size_t n = strlen(s) + 64; for (const char *p = s; (p = strchr(p, '{')); p++) n += 16;
  char *o = malloc(n), *w = o;
  for (const char *p = s; *p;) {
    if (!strncmp(p, "{i}", 3)) { w += sprintf(w, "%d", i); p += 3; }
    else if (!strncmp(p, "{m}", 3)) { w += sprintf(w, "%d", O.modulo > 0 ? i % O.modulo : i); p += 3; }
    else *w++ = *p++;
  }
  *w = 0; return o;
}

static void build_request(conn_t *c) {
  char *path = subst(O.paths ? O.paths[c->idx] : O.path, c->idx), *body = O.body ? subst(O.body, c->idx) : NULL;
  size_t cap = strlen(path) + (body ? strlen(body) : 0) + 1024; for (int i = 0; i < O.nhdr; i++) cap += strlen(O.hdr[i]) + 80;
  free(c->out); c->out = malloc(cap);
  int has_accept = 0, has_host = 0;
  size_t n = (size_t)sprintf(c->out, "%s %s HTTP/1.1\r\n", O.method, path);
  for (int i = 0; i < O.nhdr; i++) {
    char *h = subst(O.hdr[i], c->idx);
    if (!strncasecmp(h, "accept:", 7)) has_accept = 1;
    if (!strncasecmp(h, "host:", 5)) has_host = 1;
    n += (size_t)sprintf(c->out + n, "%s\r\n", h); free(h);
  }
  if (!has_host) n += (size_t)sprintf(c->out + n, "Host: %s:%d\r\n", O.host, O.ports ? O.ports[c->idx] : O.port);
  if (!has_accept) n += (size_t)sprintf(c->out + n, "Accept: text/event-stream\r\n");
  if (c->id[0]) n += (size_t)sprintf(c->out + n, "Last-Event-ID: %s\r\n", c->id);
  if (body) n += (size_t)sprintf(c->out + n, "Content-Length: %zu\r\n", strlen(body));
  n += (size_t)sprintf(c->out + n, "\r\n");
  if (body) { memcpy(c->out + n, body, strlen(body)); n += strlen(body); }
  c->outlen = n; c->outpos = 0; free(path); free(body);
}

static void arm(th_t *t, conn_t *c, uint32_t ev, int op) {
  struct epoll_event e = { .events = ev, .data.ptr = c }; epoll_ctl(t->ep, op, c->fd, &e);
}

static void conn_close(th_t *t, conn_t *c) {
  if (c->fd >= 0) close(c->fd);
  c->fd = -1;
  if (c->counted_open) { c->counted_open = 0; t->open--; __sync_fetch_and_sub(&g_open, 1); }
}

static void conn_fail(th_t *t, conn_t *c) {        /* closed; maybe come back */
  conn_close(t, c);
  if (O.reconnect && !g_stop) { c->state = C_IDLE; c->due = MONO() + (uint64_t)(O.reconnect_delay * 1e9); t->reconnects++; }
  else c->state = C_DONE;
}

static void conn_start(th_t *t, conn_t *c) {
  c->fd = socket(g_addr.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (c->fd < 0) { t->conn_err++; err(t, "socket: %s", strerror(errno)); c->state = C_DONE; return; }
  int one = 1; setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  if (O.recvbuf) setsockopt(c->fd, SOL_SOCKET, SO_RCVBUF, &O.recvbuf, sizeof O.recvbuf);
  if (O.src_ips > 1 && g_addr.ss_family == AF_INET) {       /* 127.0.0.2 ... : more than 28k connections on loopback */
    struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(0x7f000001u + (uint32_t)(c->idx % O.src_ips)) };
    bind(c->fd, (struct sockaddr *)&a, sizeof a);
  }
  build_request(c);
  c->hlen = 0; c->llen = 0; c->last_cr = 0; c->has_data = 0; c->evt_ts_ns = -1; c->status = 0; c->is_stop = 0; c->has_pend_id = 0; c->next_read = 0;
  c->t_start = MONO(); c->state = C_CONNECTING;
  struct sockaddr_storage to = g_addr;
  if (O.ports) *(g_addr.ss_family == AF_INET ? &((struct sockaddr_in *)&to)->sin_port : &((struct sockaddr_in6 *)&to)->sin6_port) = htons((uint16_t)O.ports[c->idx]);
  if (connect(c->fd, (struct sockaddr *)&to, g_addrlen) < 0 && errno != EINPROGRESS) {
    t->conn_err++; err(t, "connect: %s", strerror(errno)); conn_fail(t, c); return;
  }
  arm(t, c, EPOLLIN | EPOLLOUT | EPOLLRDHUP, EPOLL_CTL_ADD);
}

/* ------------------------------------------------------------------ SSE */
static int64_t find_ts(const char *s, size_t n) {  /* "key": 123 / "key":"123" ; magnitude decides s/ms/us/ns */
  size_t k = strlen(O.tskey);
  if (!k) return -1;
  for (const char *p = s, *e = s + n; (size_t)(e - p) > k + 2;) {
    const char *q = memmem(p, (size_t)(e - p), O.tskey, k); if (!q) return -1;
    const char *r = q + k;
    if (q > s && q[-1] == '"' && r < e && *r == '"') {
      r++; while (r < e && (*r == ' ' || *r == ':' || *r == '"')) r++;
      if (r < e && isdigit((unsigned char)*r)) {
        double frac = 0, m = 0.1; int64_t v = 0; int dot = 0;
        while (r < e && isdigit((unsigned char)*r)) v = v * 10 + (*r++ - '0');
        if (r < e && *r == '.') { dot = 1; r++; while (r < e && isdigit((unsigned char)*r)) { frac += m * (*r++ - '0'); m *= 0.1; } }
        if (v < 100000000000ll) return v * 1000000000ll + (int64_t)(frac * 1e9);
        if (v < 100000000000000ll) return v * 1000000ll + (dot ? (int64_t)(frac * 1e6) : 0);
        if (v < 100000000000000000ll) return v * 1000ll;
        return v;
      }
    }
    p = q + k;
  }
  return -1;
}

static void seq_check(th_t *t, int64_t s, int64_t *last, int *have) {   /* numbers that must grow by one */
  if (*have) { if (s == *last) t->dups++; else if (s < *last) t->reorders++; else if (s != *last + 1) t->gaps++; }
  if (!*have || s > *last) *last = s;
  *have = 1;
}

/* --tokens: the text of an event is made of tokens "@MICROSECONDS.NUMBER;" with anything between them, so that it does not
   matter how many of them a server puts into one event. Each has its own latency, and the numbers must be dense. Works on
   pieces of a line of any length. */
static void token_done(th_t *t, conn_t *c) {
  char *e; int64_t us = strtoll(c->tok, &e, 10);
  if (*e != '.' || !isdigit((unsigned char)e[1])) return;
  seq_check(t, strtoll(e + 1, NULL, 10), &c->last_tok, &c->have_tok);
  c->tokens++; t->all_tokens++;
  if (g_measure) { int64_t d = (int64_t)(REAL() / 1000) - us; t->tokens++; hist_add(&t->lat, d > 0 ? (uint64_t)d : 0); }
}

static void token_bytes(th_t *t, conn_t *c, const char *p, size_t n) {
  if (O.token_event && strcmp(c->ev, O.token_event)) return;
  for (const char *e = p + n; p < e; p++) {
    if (!c->ntok) { p = memchr(p, '@', (size_t)(e - p)); if (!p) return; c->ntok = 1; continue; }
    if (*p == ';') { c->tok[c->ntok - 1] = 0; c->ntok = 0; token_done(t, c); }
    else if ((isdigit((unsigned char)*p) || *p == '.') && c->ntok < TOKEN_MAX - 1) c->tok[c->ntok++ - 1] = *p;
    else c->ntok = 0;
  }
}

static void event_done(th_t *t, conn_t *c) {
  if (c->has_pend_id) { strcpy(c->id, c->pend_id); }
  if (c->has_data) {
    t->all_events++; c->events++;
    if (c->has_pend_id && O.seq) {                 /* trailing integer of the id must grow by one */
      const char *p = c->id + strlen(c->id); while (p > c->id && isdigit((unsigned char)p[-1])) p--;
      if (*p) seq_check(t, strtoll(p, NULL, 10), &c->last_seq, &c->have_seq);
    }
    if (g_measure) {
      t->events++;
      if (O.tokens) ;                              /* each token has its own time */
      else if (c->evt_ts_ns > 0) { int64_t d = (int64_t)REAL() - c->evt_ts_ns; hist_add(&t->lat, d > 0 ? (uint64_t)d / 1000 : 0); }
      else t->no_ts++;
    }
  }
  c->has_data = 0; c->evt_ts_ns = -1; c->has_pend_id = 0; c->ev[0] = 0;
}

static void sse_line(th_t *t, conn_t *c) {
  char *l = c->line; size_t n = c->llen; c->llen = 0;
  if (O.dump) fprintf(stderr, "[%d] %.*s\n", c->idx, (int)n, l);
  if (n == 0) { event_done(t, c); return; }
  if (l[0] == ':') { t->comments++; return; }
  size_t f = 0; while (f < n && l[f] != ':') f++;
  size_t v = f < n ? f + 1 : f; if (v < n && l[v] == ' ') v++;
  if (f == 4 && !memcmp(l, "data", 4)) {
    c->has_data = 1;
    if (!O.tokens && c->evt_ts_ns < 0) c->evt_ts_ns = find_ts(l + v, n - v);
  } else if (f == 2 && !memcmp(l, "id", 2)) {
    if (n - v < ID_MAX_LEN && !memchr(l + v, 0, n - v)) { memcpy(c->pend_id, l + v, n - v); c->pend_id[n - v] = 0; c->has_pend_id = 1; }
  } else if (f == 5 && !memcmp(l, "event", 5)) {
    t->named++;
    if (n - v < sizeof c->ev) { memcpy(c->ev, l + v, n - v); c->ev[n - v] = 0; }
    if (O.stop_event && strlen(O.stop_event) == n - v && !memcmp(l + v, O.stop_event, n - v)) c->is_stop = 1;
  }
}

static void sse_bytes(th_t *t, conn_t *c, const char *p, size_t n) {
  t->body += n;
  const char *e = p + n;
  while (p < e) {
    if (c->last_cr) { c->last_cr = 0; if (*p == '\n') { p++; continue; } }
    const char *q = p; while (q < e && *q != '\n' && *q != '\r') q++;
    size_t len = (size_t)(q - p), room = LINE_MAX_KEEP - c->llen;
    if (len > room) len = room;
    memcpy(c->line + c->llen, p, len); c->llen += len;
    if (O.tokens) token_bytes(t, c, p, (size_t)(q - p));
    if (q == e) return;
    c->ntok = 0;
    if (*q == '\r') c->last_cr = 1;
    p = q + 1;
    sse_line(t, c);
  }
}

/* ------------------------------------------------------------------ HTTP body. returns 0 go on, 1 message complete, -1 malformed */
static int feed_body(th_t *t, conn_t *c, const char *p, size_t n) {
  const char *e = p + n;
  if (c->bodymode == B_CLOSE) { sse_bytes(t, c, p, n); return 0; }
  if (c->bodymode == B_LENGTH) {
    size_t m = n < c->remain ? n : (size_t)c->remain; sse_bytes(t, c, p, m); c->remain -= m; return c->remain == 0;
  }
  while (p < e) {
    switch (c->kst) {
      case K_SIZE: {
        int d, ch = *p; 
        if (ch >= '0' && ch <= '9') d = ch - '0'; else if (ch >= 'a' && ch <= 'f') d = ch - 'a' + 10; else if (ch >= 'A' && ch <= 'F') d = ch - 'A' + 10;
        else { if (!c->ksize_digits) return -1; c->kst = K_EXT; break; }
        if (++c->ksize_digits > 15) return -1;
        c->remain = c->remain * 16 + (uint64_t)d; p++; break; }
      case K_EXT: if (*p == '\r') c->kst = K_LF; else if (*p == '\n') goto size_end; p++; break;
      case K_LF: if (*p != '\n') return -1;
      size_end: p++; if (c->remain == 0) { c->kst = K_TRAILER; c->trailer_len = 0; } else c->kst = K_DATA; break;
      case K_DATA: { size_t m = (size_t)(e - p); if (m > c->remain) m = (size_t)c->remain; sse_bytes(t, c, p, m); c->remain -= m; p += m; if (!c->remain) c->kst = K_DATA_CR; break; }
      case K_DATA_CR: if (*p != '\r') return -1; p++; c->kst = K_DATA_LF; break;
      case K_DATA_LF: if (*p != '\n') return -1; p++; c->kst = K_SIZE; c->remain = 0; c->ksize_digits = 0; break;
      case K_TRAILER: if (*p == '\n') { if (c->trailer_len == 0) { c->kst = K_END; return 1; } c->trailer_len = 0; } else if (*p != '\r') c->trailer_len++; p++; break;
      default: return -1;
    }
  }
  return 0;
}

static int parse_headers(th_t *t, conn_t *c, size_t *consumed, size_t before) {
  char *end = memmem(c->hdr, c->hlen, "\r\n\r\n", 4); if (!end) return c->hlen >= HDR_MAX ? -1 : 0;
  size_t hl = (size_t)(end - c->hdr) + 4; *consumed = hl - before;
  if (strncmp(c->hdr, "HTTP/1.", 7) || hl < 13) return -1;
  c->status = atoi(c->hdr + 9); c->bodymode = B_CLOSE; c->remain = 0; c->kst = K_SIZE; c->ksize_digits = 0;
  end[2] = 0;
  for (char *p = strstr(c->hdr, "\r\n"); p && p < end; p = strstr(p + 2, "\r\n")) {
    char *h = p + 2;
    if (!strncasecmp(h, "transfer-encoding:", 18) && strcasestr(h, "chunked")) c->bodymode = B_CHUNKED;
    else if (!strncasecmp(h, "content-length:", 15)) { c->bodymode = B_LENGTH; c->remain = strtoull(h + 15, NULL, 10); }
  }
  c->t_hdr = MONO(); hist_add(&t->ttfb, (c->t_hdr - c->t_start) / 1000);
  if (c->status / 100 != 2) { t->http_err++; err(t, "HTTP status %d", c->status); }
  else { c->counted_open = 1; t->open++; t->connects++; __sync_fetch_and_add(&g_open, 1); }
  return 1;
}

static void on_bytes(th_t *t, conn_t *c, const char *buf, size_t n) {
  t->wire += n;
  if (c->state == C_HEADERS) {
    size_t before = c->hlen, m = n < HDR_MAX - c->hlen ? n : HDR_MAX - c->hlen, used = 0;
    memcpy(c->hdr + c->hlen, buf, m); c->hlen += m;
    int r = parse_headers(t, c, &used, before);
    if (r < 0) { t->parse_err++; err(t, "bad response header"); conn_fail(t, c); return; }
    if (r == 0) return;
    c->state = C_BODY; buf += used; n -= used;
    if (c->status / 100 != 2) { conn_fail(t, c); return; }
    if (c->bodymode == B_LENGTH && c->remain == 0) { t->eof_ok++; conn_fail(t, c); return; }
  }
  if (n) {
    int r = feed_body(t, c, buf, n);
    if (r < 0) { t->parse_err++; err(t, "bad chunked encoding"); conn_fail(t, c); return; }
    if (c->is_stop) { t->stops++; conn_close(t, c); c->state = C_DONE; return; }
    if (O.expect && (O.tokens ? c->tokens : c->events) >= O.expect) { conn_close(t, c); c->state = C_DONE; return; }
    if (r == 1) { t->eof_ok++; conn_fail(t, c); }
  }
}

static void *worker(void *arg) {
  th_t *t = arg; static __thread char buf[262144];
  struct epoll_event *ev = calloc(4096, sizeof *ev);
  uint64_t t0 = MONO(); int started = 0; int alive = 1;
  struct timespec cpu0, cpu1; int cpu_on = 0; memset(&cpu0, 0, sizeof cpu0);
  while (!g_stop && alive) {
    if (g_measure && !cpu_on) { cpu_on = 1; clock_gettime(CLOCK_THREAD_CPUTIME_ID, &cpu0); }
    uint64_t now = MONO();
    int may = O.ramp > 0 ? (int)((double)(now - t0) / 1e9 * O.ramp / O.threads) + 1 : t->nconn;
    if (may > t->nconn) may = t->nconn;
    while (started < may) conn_start(t, &t->c[started++]);
    int n = epoll_wait(t->ep, ev, 4096, started < t->nconn ? 1 : 20);
    now = MONO();
    for (int i = 0; i < n; i++) {
      conn_t *c = ev[i].data.ptr; if (c->fd < 0) continue;
      if (c->state == C_CONNECTING) {
        if (!(ev[i].events & (EPOLLOUT | EPOLLERR | EPOLLHUP))) continue;
        int e = 0; socklen_t el = sizeof e; getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &e, &el);
        if (e) { t->conn_err++; err(t, "connect: %s", strerror(e)); conn_fail(t, c); continue; }
        c->state = C_HEADERS;
      }
      if (c->outpos < c->outlen && (ev[i].events & EPOLLOUT)) {
        ssize_t w = write(c->fd, c->out + c->outpos, c->outlen - c->outpos);
        if (w < 0 && errno != EAGAIN) { t->conn_err++; err(t, "write: %s", strerror(errno)); conn_fail(t, c); continue; }
        if (w > 0) c->outpos += (size_t)w;
        if (c->outpos == c->outlen) arm(t, c, EPOLLIN | EPOLLRDHUP, EPOLL_CTL_MOD);
      }
      if (ev[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR | EPOLLRDHUP)) {
        size_t want = sizeof buf;
        if (O.slow_bps > 0 && c->state == C_BODY) {           /* slow reader: a slice every 50 ms */
          if (now < c->next_read) continue;
          c->next_read = now + 50000000ull; want = (size_t)(O.slow_bps / 20); if (want < 1) want = 1; if (want > sizeof buf) want = sizeof buf;
        }
        ssize_t r = read(c->fd, buf, want);
        if (r > 0) on_bytes(t, c, buf, (size_t)r);
        else if (r == 0) {
          if (c->state == C_BODY && c->bodymode == B_CLOSE) t->eof_ok++; else { t->early_close++; err(t, "closed early in state %d", c->state); }
          conn_fail(t, c);
        } else if (errno != EAGAIN && errno != EINTR) { t->read_err++; err(t, "read: %s", strerror(errno)); conn_fail(t, c); }
      }
    }
    if (O.slow_bps > 0) usleep(2000);                          /* level-triggered readiness would spin */
    static __thread uint64_t last_scan; if (now - last_scan > 20000000ull) {
      last_scan = now; alive = started < t->nconn;
      for (int i = 0; i < started; i++) {
        conn_t *c = &t->c[i];
        if (c->state == C_IDLE && c->due <= now) conn_start(t, c);
        if (O.close_after > 0 && c->state == C_BODY && now - c->t_hdr > (uint64_t)(O.close_after * 1e9)) { t->eof_ok++; conn_fail(t, c); }
        if (c->state != C_DONE) alive = 1;
      }
    }
  }
  if (cpu_on) { clock_gettime(CLOCK_THREAD_CPUTIME_ID, &cpu1); t->cpu_us = (double)(cpu1.tv_sec - cpu0.tv_sec) * 1e6 + (double)(cpu1.tv_nsec - cpu0.tv_nsec) / 1e3; }
  if (O.linger > 0) usleep((useconds_t)(O.linger * 1e6));
  for (int i = 0; i < t->nconn; i++) if (t->c[i].fd >= 0) conn_close(t, &t->c[i]);
  free(ev); return NULL;
}

/* ------------------------------------------------------------------ the server's processes */
typedef struct { double cpu_s; double rss_kb, pss_kb, written; } proc_t;
static proc_t procs(int pss) {
  proc_t r = {0, 0, 0, 0}; char f[64], b[2048];
  for (int i = 0; i < O.npids; i++) {
    snprintf(f, sizeof f, "/proc/%d/stat", O.pids[i]); FILE *p = fopen(f, "r"); if (!p) continue;
    size_t n = fread(b, 1, sizeof b - 1, p); b[n] = 0; fclose(p);
    char *q = strrchr(b, ')'); unsigned long ut = 0, st = 0;
    if (q && sscanf(q + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &ut, &st) == 2) r.cpu_s += (double)(ut + st) / (double)sysconf(_SC_CLK_TCK);
    /* schedstat has nanoseconds but only of the main thread: add over the tasks for a finer number */
    snprintf(f, sizeof f, "/proc/%d/%s", O.pids[i], pss ? "smaps_rollup" : "status"); p = fopen(f, "r"); if (!p) continue;
    while (fgets(b, sizeof b, p)) { double v; if (sscanf(b, "Rss: %lf", &v) == 1 || sscanf(b, "VmRSS: %lf", &v) == 1) r.rss_kb += v; if (sscanf(b, "Pss: %lf", &v) == 1) r.pss_kb += v; }
    fclose(p);
    snprintf(f, sizeof f, "/proc/%d/io", O.pids[i]); p = fopen(f, "r"); if (!p) continue;
    while (fgets(b, sizeof b, p)) { double v; if (sscanf(b, "write_bytes: %lf", &v) == 1) r.written += v; }
    fclose(p);
  }
  return r;
}

static void on_sig(int s) { (void)s; g_stop = 1; }
static void on_go(int s) { (void)s; g_go = 1; }

static void read_to(const char *file) {
  char line[HDR_MAX], path[HDR_MAX]; int port, n = 0; FILE *f = fopen(file, "r");
  if (!f) { fprintf(stderr, "cannot read %s\n", file); exit(2); }
  while (fgets(line, sizeof line, f)) if (sscanf(line, "%d %16383s", &port, path) == 2) {
    O.ports = realloc(O.ports, sizeof *O.ports * (size_t)(n + 1)); O.paths = realloc(O.paths, sizeof *O.paths * (size_t)(n + 1));
    O.ports[n] = port; O.paths[n++] = strdup(path);
  }
  fclose(f); O.conns = n;
}

static void usage(void) {
  fputs(
"sseload [options] PATH        load client for Server-Sent Events over HTTP/1.1 (chunked, length or close)\n"
"  -H, --host ADDR        server address (127.0.0.1)      -p, --port N           port (8000)\n"
"  -c, --connections N    connections (100)               -t, --threads N        epoll threads (1)\n"
"  -d, --duration S       measured seconds (10)           -w, --warmup S         seconds not measured, from all-open (0)\n"
"  -r, --ramp N           new connections per second (2000; 0 = all at once)\n"
"  -h, --header 'K: V'    request header, repeatable      -X, --method M         GET or POST ... (GET)\n"
"  -b, --body TEXT        request body ({i} and {m} work in PATH, body and headers: number, number mod --modulo)\n"
"      --to FILE          a line \"PORT PATH\" for each connection, instead of -c, -p and PATH\n"
"      --modulo N         for {m}                         -k, --ts-key NAME      JSON key of the timestamp in data: (ts)\n"
"      --reconnect [S]    come back after a close, with Last-Event-ID, after S seconds (0.2)\n"
"      --close-after S    close each connection S seconds after its headers (with --reconnect: churn)\n"
"      --seq              check that the trailing integer of id: grows by one (gaps, dups, reorders)\n"
"      --expect N         close a connection after N events; ends when all are closed\n"
"      --stop-event NAME  close a connection at event: NAME\n"
"      --slow BPS         slow reader: read at most BPS bytes/s per connection\n"
"      --rcvbuf N         SO_RCVBUF of each connection     --src-ips N            spread over 127.0.0.1..N\n"
"      --linger S         keep connections open S seconds after the measurement\n"
"      --pid P[,P...]     server processes: CPU seconds and RSS over the run\n"
"  -i, --interval S       progress line every S seconds    -j, --json             one JSON object on stdout\n"
"      --tokens [NAME]    look in the data (of events NAME) for @MICROSECONDS.NUMBER; and check that NUMBER grows by one;\n"
"                         latencies are theirs, and --expect counts them\n"
"      --go               says \"open\" on stderr when all are open; the measured seconds begin at SIGUSR1\n"
"      --dump             print every SSE line to stderr\n", stderr);
}

int main(int argc, char **argv) {
  enum { L_RECON = 256, L_SEQ, L_EXPECT, L_STOP, L_SLOW, L_RCVBUF, L_SRC, L_PID, L_LINGER, L_MOD, L_CLOSE, L_DUMP, L_TOKENS, L_GO, L_TO };
  static struct option lo[] = { {"host",1,0,'H'},{"port",1,0,'p'},{"connections",1,0,'c'},{"threads",1,0,'t'},{"duration",1,0,'d'},{"warmup",1,0,'w'},
    {"ramp",1,0,'r'},{"header",1,0,'h'},{"method",1,0,'X'},{"body",1,0,'b'},{"ts-key",1,0,'k'},{"reconnect",2,0,L_RECON},{"seq",0,0,L_SEQ},{"expect",1,0,L_EXPECT},
    {"stop-event",1,0,L_STOP},{"slow",1,0,L_SLOW},{"rcvbuf",1,0,L_RCVBUF},{"src-ips",1,0,L_SRC},{"pid",1,0,L_PID},{"linger",1,0,L_LINGER},{"modulo",1,0,L_MOD},
    {"close-after",1,0,L_CLOSE},{"dump",0,0,L_DUMP},{"tokens",2,0,L_TOKENS},{"go",0,0,L_GO},{"to",1,0,L_TO},{"interval",1,0,'i'},{"json",0,0,'j'},{"help",0,0,'?'},{0,0,0,0} };
  int o;
  while ((o = getopt_long(argc, argv, "H:p:c:t:d:w:r:h:X:b:k:i:j", lo, NULL)) != -1) switch (o) {
    case 'H': O.host = optarg; break; case 'p': O.port = atoi(optarg); break; case 'c': O.conns = atoi(optarg); break;
    case 't': O.threads = atoi(optarg); break; case 'd': O.duration = atof(optarg); break; case 'w': O.warmup = atof(optarg); break;
    case 'r': O.ramp = atof(optarg); break; case 'h': if (O.nhdr < 64) O.hdr[O.nhdr++] = optarg; break; case 'X': O.method = optarg; break;
    case 'b': O.body = optarg; if (!strcmp(O.method, "GET")) O.method = "POST"; break; case 'k': O.tskey = optarg; break;
    case L_RECON: O.reconnect = 1; if (optarg) O.reconnect_delay = atof(optarg); break; case L_SEQ: O.seq = 1; break;
    case L_EXPECT: O.expect = strtoull(optarg, NULL, 10); break; case L_STOP: O.stop_event = optarg; break; case L_SLOW: O.slow_bps = atof(optarg); break;
    case L_RCVBUF: O.recvbuf = atoi(optarg); break; case L_SRC: O.src_ips = atoi(optarg); break; case L_LINGER: O.linger = atof(optarg); break;
    case L_MOD: O.modulo = atoi(optarg); break; case L_CLOSE: O.close_after = atof(optarg); break; case L_DUMP: O.dump = 1; break;
    case L_TOKENS: O.tokens = 1; O.token_event = optarg; break; case L_GO: O.go = 1; break; case L_TO: read_to(optarg); break;
    case L_PID: for (char *p = strtok(optarg, ","); p; p = strtok(NULL, ",")) if (O.npids < 64) O.pids[O.npids++] = atoi(p); break;
    case 'i': O.interval = atof(optarg); break; case 'j': O.json = 1; break;
    default: usage(); return 2;
  }
  if (optind < argc) O.path = argv[optind];
  if (O.conns < 1 || O.threads < 1) { usage(); return 2; }
  if (O.threads > O.conns) O.threads = O.conns;
  struct rlimit rl; getrlimit(RLIMIT_NOFILE, &rl); rl.rlim_cur = rl.rlim_max; setrlimit(RLIMIT_NOFILE, &rl);
  struct addrinfo hints = { .ai_socktype = SOCK_STREAM }, *ai; char ps[16]; snprintf(ps, sizeof ps, "%d", O.port);
  if (getaddrinfo(O.host, ps, &hints, &ai)) { fprintf(stderr, "cannot resolve %s\n", O.host); return 2; }
  memcpy(&g_addr, ai->ai_addr, ai->ai_addrlen); g_addrlen = ai->ai_addrlen; freeaddrinfo(ai);
  signal(SIGINT, on_sig); signal(SIGTERM, on_sig); signal(SIGPIPE, SIG_IGN); signal(SIGUSR1, on_go);

  proc_t p0 = procs(1);
  th_t *T = calloc((size_t)O.threads, sizeof *T); int idx = 0;
  for (int i = 0; i < O.threads; i++) {
    T[i].tid = i; T[i].ep = epoll_create1(EPOLL_CLOEXEC); T[i].nconn = O.conns / O.threads + (i < O.conns % O.threads);
    T[i].c = calloc((size_t)T[i].nconn, sizeof(conn_t));
    for (int j = 0; j < T[i].nconn; j++) { T[i].c[j].fd = -1; T[i].c[j].idx = idx++; T[i].c[j].evt_ts_ns = -1; T[i].c[j].last_seq = INT64_MIN; }
  }
  uint64_t tstart = MONO(); int alive = O.threads; (void)alive;
  if (O.warmup <= 0 && !O.go) g_measure = 1;
  for (int i = 0; i < O.threads; i++) pthread_create(&T[i].th, NULL, worker, &T[i]);
  double limit = (O.ramp > 0 ? O.conns / O.ramp : 0) + 30;
  /* wait until all connections are past their headers (or the time is up), then warm up, then measure */
  uint64_t last = MONO(); double all_open = -1;
#define PROGRESS() do { if (O.interval > 0 && (double)(MONO() - last) / 1e9 >= O.interval) { last = MONO(); uint64_t e_ = 0; for (int i_ = 0; i_ < O.threads; i_++) e_ += T[i_].all_events; \
    fprintf(stderr, "t=%.1f open=%" PRIu64 " events=%" PRIu64 "\n", (double)(last - tstart) / 1e9, (uint64_t)g_open, e_); } } while (0)
  if (O.warmup > 0 || O.go) {
    while (!g_stop && (double)(MONO() - tstart) / 1e9 < limit) { if (g_open >= (uint64_t)O.conns) break; usleep(5000); PROGRESS(); }
    all_open = (double)(MONO() - tstart) / 1e9;
    if (O.go) { fputs("open\n", stderr); fflush(stderr); while (!g_stop && !g_go) { usleep(2000); PROGRESS(); } }
    uint64_t w0 = MONO(); while (!g_stop && (double)(MONO() - w0) / 1e9 < O.warmup) { usleep(5000); PROGRESS(); }
  }
  proc_t p1 = procs(1); struct rusage ru0, ru1; getrusage(RUSAGE_SELF, &ru0);
  uint64_t m0 = MONO(); g_measure = 1;
  while (!g_stop && (double)(MONO() - m0) / 1e9 < O.duration) {
    usleep(2000); PROGRESS();
    if (O.expect || O.stop_event || !O.reconnect) { int done = 1; for (int i = 0; i < O.threads && done; i++) if (pthread_tryjoin_np(T[i].th, NULL) == 0) T[i].th = 0; for (int i = 0; i < O.threads; i++) if (T[i].th) done = 0; if (done) break; }
  }
  uint64_t m1 = MONO(); g_measure = 0; uint64_t open_at_end = g_open; getrusage(RUSAGE_SELF, &ru1); proc_t p2 = procs(1); g_stop = 1;
  for (int i = 0; i < O.threads; i++) if (T[i].th) pthread_join(T[i].th, NULL);

  th_t S; memset(&S, 0, sizeof S);
  for (int i = 0; i < O.threads; i++) {
    th_t *t = &T[i]; hist_merge(&S.lat, &t->lat); hist_merge(&S.ttfb, &t->ttfb);
#define ADD(f) S.f += t->f
    ADD(events); ADD(all_events); ADD(comments); ADD(wire); ADD(body); ADD(connects); ADD(conn_err); ADD(http_err); ADD(early_close); ADD(parse_err); ADD(reconnects);
    ADD(gaps); ADD(dups); ADD(reorders); ADD(stops); ADD(read_err); ADD(no_ts); ADD(eof_ok); ADD(named); ADD(tokens); ADD(all_tokens);
    if (!S.first_err[0] && t->first_err[0]) strcpy(S.first_err, t->first_err);
  }
  double sec = (double)(m1 - m0) / 1e9;
  double ccpu = (double)(ru1.ru_utime.tv_sec - ru0.ru_utime.tv_sec + ru1.ru_stime.tv_sec - ru0.ru_stime.tv_sec) + (double)(ru1.ru_utime.tv_usec - ru0.ru_utime.tv_usec + ru1.ru_stime.tv_usec - ru0.ru_stime.tv_usec) / 1e6;
  double scpu = p2.cpu_s - p1.cpu_s, ev = S.events ? (double)S.events : 1, oc = open_at_end ? (double)open_at_end : 1;
  uint64_t errors = S.conn_err + S.http_err + S.early_close + S.parse_err + S.read_err;
  if (O.json) {
    printf("{\"connections\":%d,\"open_at_end\":%" PRIu64 ",\"seconds\":%.3f,\"events\":%" PRIu64 ",\"events_per_s\":%.1f,\"all_events\":%" PRIu64 ",\"comments\":%" PRIu64
      ",\"wire_bytes\":%" PRIu64 ",\"body_bytes\":%" PRIu64 ",\"lat_us\":{\"n\":%" PRIu64 ",\"mean\":%.1f,\"p50\":%.0f,\"p90\":%.0f,\"p99\":%.0f,\"p999\":%.0f,\"max\":%" PRIu64 "}"
      ",\"ttfb_us\":{\"p50\":%.0f,\"p99\":%.0f,\"max\":%" PRIu64 "},\"errors\":%" PRIu64 ",\"connect_err\":%" PRIu64 ",\"http_err\":%" PRIu64 ",\"early_close\":%" PRIu64 ",\"parse_err\":%" PRIu64
      ",\"read_err\":%" PRIu64 ",\"eof_ok\":%" PRIu64 ",\"stops\":%" PRIu64 ",\"reconnects\":%" PRIu64 ",\"gaps\":%" PRIu64 ",\"dups\":%" PRIu64 ",\"reorders\":%" PRIu64 ",\"no_ts\":%" PRIu64 ",\"all_open_s\":%.3f,\"client_cpu_s\":%.3f,\"client_us_per_event\":%.2f",
      O.conns, open_at_end, sec, S.events, (double)S.events / sec, S.all_events, S.comments, S.wire, S.body, S.lat.n, S.lat.n ? S.lat.sum / (double)S.lat.n : 0,
      hist_q(&S.lat, .5), hist_q(&S.lat, .9), hist_q(&S.lat, .99), hist_q(&S.lat, .999), S.lat.max, hist_q(&S.ttfb, .5), hist_q(&S.ttfb, .99), S.ttfb.max, errors, S.conn_err, S.http_err, S.early_close,
      S.parse_err, S.read_err, S.eof_ok, S.stops, S.reconnects, S.gaps, S.dups, S.reorders, S.no_ts, all_open, ccpu, ccpu * 1e6 / ev);
    if (O.tokens) printf(",\"tokens\":%" PRIu64 ",\"tokens_per_s\":%.1f,\"all_tokens\":%" PRIu64, S.tokens, (double)S.tokens / sec, S.all_tokens);
    if (O.npids) printf(",\"server_written_bytes\":%.0f", p2.written - p1.written);
    if (O.npids) printf(",\"server_cpu_s\":%.2f,\"server_us_per_event\":%.2f,\"server_rss_kb\":[%.0f,%.0f,%.0f],\"rss_kb_per_conn\":%.2f", scpu, scpu * 1e6 / ev, p0.rss_kb, p1.rss_kb, p2.rss_kb, (p2.rss_kb - p0.rss_kb) / oc);
    if (S.first_err[0]) { printf(",\"first_error\":\""); for (char *p = S.first_err; *p; p++) if (*p == '"' || *p == '\\') printf("\\%c", *p); else putchar(*p); putchar('"'); }
    printf("}\n");
  } else {
    printf("connections   %d asked, %" PRIu64 " opened, %" PRIu64 " open at the end%s", O.conns, S.connects, open_at_end, "");
    if (all_open >= 0) printf(", all open after %.2f s", all_open);
    printf("\nevents        %" PRIu64 " in %.2f s = %.1f /s (%" PRIu64 " comments, %" PRIu64 " events with the warm-up)\n", S.events, sec, (double)S.events / sec, S.comments, S.all_events);
    if (O.tokens) printf("tokens        %" PRIu64 " = %.1f /s (%" PRIu64 " with the warm-up)\n", S.tokens, (double)S.tokens / sec, S.all_tokens);
    printf("bytes         %" PRIu64 " on the wire, %" PRIu64 " of body\n", S.wire, S.body);
    if (S.lat.n) printf("latency us    p50 %.0f  p90 %.0f  p99 %.0f  p99.9 %.0f  max %" PRIu64 "  (n %" PRIu64 ")\n", hist_q(&S.lat, .5), hist_q(&S.lat, .9), hist_q(&S.lat, .99), hist_q(&S.lat, .999), S.lat.max, S.lat.n);
    printf("headers us    p50 %.0f  p99 %.0f  max %" PRIu64 "\n", hist_q(&S.ttfb, .5), hist_q(&S.ttfb, .99), S.ttfb.max);
    printf("errors        %" PRIu64 " (connect %" PRIu64 ", http %" PRIu64 ", early close %" PRIu64 ", malformed %" PRIu64 ", read %" PRIu64 ")%s%s\n", errors, S.conn_err, S.http_err, S.early_close, S.parse_err, S.read_err, S.first_err[0] ? " first: " : "", S.first_err);
    printf("streams       %" PRIu64 " ended cleanly, %" PRIu64 " stopped by event, %" PRIu64 " reconnects", S.eof_ok, S.stops, S.reconnects);
    if (O.seq) printf(", seq: %" PRIu64 " gaps, %" PRIu64 " dups, %" PRIu64 " reorders", S.gaps, S.dups, S.reorders);
    printf("\nclient cpu    %.2f s = %.2f us/event\n", ccpu, ccpu * 1e6 / ev);
    if (O.npids) printf("server        cpu %.2f s = %.2f us/event; RSS %.1f -> %.1f -> %.1f MB (start, before measuring, end) = %.2f KB per open connection\n", scpu, scpu * 1e6 / ev, p0.rss_kb / 1024, p1.rss_kb / 1024, p2.rss_kb / 1024, (p2.rss_kb - p0.rss_kb) / oc);
  }
  int bad = errors > 0 || S.gaps || S.dups || S.reorders;
  return bad ? 1 : 0;
}
