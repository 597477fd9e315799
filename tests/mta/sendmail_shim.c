/* For LD_PRELOAD, built by install.sh: what the laboratory's Sendmail takes from the machine and no option moves.
 *
 * Its name: Sendmail asks for it before it reads its configuration, and where the name has no dot (most containers)
 * it sleeps for a minute. Here the machine is mx.lab.test at 127.0.0.1, the loopback client is localhost, and no
 * name server is asked.
 * Its log: syslog, which few containers have. It goes to the file that FASTMILTER_LAB_LOG names. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

static char lab_name[] = "mx.lab.test";
static char client_name[] = "localhost";
static char numeric[] = "127.0.0.1";
static char log_path[4096];

/* Read at once: Sendmail clears its environment. */
__attribute__((constructor)) static void remember_log(void) {
  const char *path = getenv("FASTMILTER_LAB_LOG");
  if (path != NULL) snprintf(log_path, sizeof(log_path), "%s", path);
}

int gethostname(char *name, size_t length) {
  snprintf(name, length, "%s", lab_name);
  return 0;
}

int uname(struct utsname *system) {
  memset(system, 0, sizeof(*system));
  snprintf(system->sysname, sizeof(system->sysname), "Linux");
  snprintf(system->nodename, sizeof(system->nodename), "%s", lab_name);
  return 0;
}

static struct hostent *loopback_entry(char *name) {
  static char *no_aliases[] = {NULL};
  static struct in_addr loopback;
  static char *addresses[] = {(char *)&loopback, NULL};
  static struct hostent entry;
  loopback.s_addr = htonl(INADDR_LOOPBACK);
  entry = (struct hostent){name, no_aliases, AF_INET, sizeof(loopback), addresses};
  return &entry;
}

static struct hostent *not_found(void) {
  h_errno = HOST_NOT_FOUND;
  return NULL;
}

struct hostent *gethostbyname2(const char *name, int family) {
  if (family != AF_INET) return not_found();
  if (strcmp(name, lab_name) == 0) return loopback_entry(lab_name);
  if (strcmp(name, client_name) == 0) return loopback_entry(client_name);
  if (strcmp(name, numeric) == 0) return loopback_entry(numeric);
  return not_found();
}

struct hostent *gethostbyname(const char *name) { return gethostbyname2(name, AF_INET); }

struct hostent *gethostbyaddr(const void *address, socklen_t length, int family) {
  const in_addr_t loopback = htonl(INADDR_LOOPBACK);
  if (family != AF_INET || length < sizeof(loopback) || memcmp(address, &loopback, sizeof(loopback)) != 0)
    return not_found();
  return loopback_entry(client_name);
}

void __syslog_chk(int priority, int flag, const char *format, ...) {
  char line[8192];
  (void)priority, (void)flag;
  if (log_path[0] == '\0') return;
  int prefix = snprintf(line, sizeof(line), "sendmail[%ld]: ", (long)getpid());
  va_list arguments;
  va_start(arguments, format);
  int length = vsnprintf(line + prefix, sizeof(line) - prefix - 1, format, arguments);
  va_end(arguments);
  if (length < 0) return;
  length += prefix;
  if (length > (int)sizeof(line) - 2) length = sizeof(line) - 2;
  line[length++] = '\n';
  int file = open(log_path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
  if (file < 0) return;
  /* A lost line of a test's log is nothing that the program under test could be told about. */
  if (write(file, line, length) < 0) (void)0;
  close(file);
}
