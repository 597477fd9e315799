/* The standard filter of these tests (see README.md) on libmilter:  standard SOCKET */

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <libmilter/mfapi.h>

struct state {
  char helo[256];
  char auth[256];
  char client[256];
  char subject[1024];
  int fields;
  unsigned char *body;
  size_t size;
};

static void copy(char *to, size_t room, const char *from) { snprintf(to, room, "%s", from ? from : "-"); }

static struct state *mine(SMFICTX *ctx) { return smfi_getpriv(ctx); }

static sfsistat on_negotiate(SMFICTX *ctx, unsigned long actions, unsigned long protocol, unsigned long unused2,
                             unsigned long unused3, unsigned long *wanted, unsigned long *steps,
                             unsigned long *zero2, unsigned long *zero3) {
  *wanted = actions;
  *steps = protocol & (SMFIP_NR_HDR | SMFIP_NODATA | SMFIP_NOUNKNOWN);
  *zero2 = *zero3 = 0;
  smfi_setsymlist(ctx, SMFIM_ENVFROM, "i {auth_authen} {client_addr}");
  return SMFIS_CONTINUE;
}

static sfsistat on_connect(SMFICTX *ctx, char *name, _SOCK_ADDR *address) {
  struct state *state = calloc(1, sizeof *state);
  return state && smfi_setpriv(ctx, state) == MI_SUCCESS ? SMFIS_CONTINUE : SMFIS_TEMPFAIL;
}

static sfsistat on_helo(SMFICTX *ctx, char *name) {
  copy(mine(ctx)->helo, sizeof mine(ctx)->helo, name);
  return SMFIS_CONTINUE;
}

static sfsistat on_mail(SMFICTX *ctx, char **path) {
  struct state *state = mine(ctx);
  state->fields = 0;
  state->size = 0;
  state->subject[0] = 0;
  copy(state->auth, sizeof state->auth, smfi_getsymval(ctx, "{auth_authen}"));
  copy(state->client, sizeof state->client, smfi_getsymval(ctx, "{client_addr}"));
  return strncmp(path[0], "<later@", 7) ? SMFIS_CONTINUE : SMFIS_TEMPFAIL;
}

static sfsistat on_rcpt(SMFICTX *ctx, char **path) {
  if (strncmp(path[0], "<refused@", 9))
    return SMFIS_CONTINUE;
  smfi_setreply(ctx, "550", "5.7.1", "no such user");
  return SMFIS_REJECT;
}

static sfsistat on_header(SMFICTX *ctx, char *name, char *value) {
  mine(ctx)->fields++;
  if (!strcmp(name, "Subject"))
    copy(mine(ctx)->subject, sizeof mine(ctx)->subject, value);
  return SMFIS_CONTINUE;
}

static sfsistat on_body(SMFICTX *ctx, unsigned char *chunk, size_t size) {
  struct state *state = mine(ctx);
  unsigned char *body = realloc(state->body, state->size + size);
  if (!body)
    return SMFIS_TEMPFAIL;
  state->body = body;
  for (size_t i = 0; i < size; i++)
    body[state->size++] = toupper(chunk[i]);
  return SMFIS_CONTINUE;
}

static sfsistat on_end_of_message(SMFICTX *ctx) {
  struct state *state = mine(ctx);
  char text[2048];

  if (!strcmp(state->subject, "discard"))
    return SMFIS_DISCARD;
  smfi_progress(ctx);
  if (!strcmp(state->subject, "hold"))
    smfi_quarantine(ctx, "held for a test");
  snprintf(text, sizeof text, "[seen] %s", state->subject);
  smfi_chgheader(ctx, "Subject", 1, text);
  smfi_chgheader(ctx, "X-Old", 2, NULL);
  smfi_insheader(ctx, 0, "X-First", "1");
  snprintf(text, sizeof text, "helo=%s fields=%d auth=%s\n\tclient=%s", state->helo, state->fields, state->auth,
           state->client);
  smfi_addheader(ctx, "X-Seen", text);
  smfi_addrcpt(ctx, "<extra@to.test>");
  smfi_delrcpt(ctx, "<gone@to.test>");
  smfi_chgfrom(ctx, "<bounce@from.test>", NULL);
  smfi_replacebody(ctx, state->body, state->size);
  return SMFIS_CONTINUE;
}

static sfsistat on_close(SMFICTX *ctx) {
  struct state *state = mine(ctx);
  if (state) {
    free(state->body);
    free(state);
    smfi_setpriv(ctx, NULL);
  }
  return SMFIS_CONTINUE;
}

int main(int count, char **words) {
  struct smfiDesc filter = {
      .xxfi_name = "standard",
      .xxfi_version = SMFI_VERSION,
      .xxfi_flags = SMFIF_ADDHDRS | SMFIF_CHGHDRS | SMFIF_CHGBODY | SMFIF_ADDRCPT | SMFIF_DELRCPT |
                    SMFIF_QUARANTINE | SMFIF_CHGFROM | SMFIF_SETSYMLIST,
      .xxfi_connect = on_connect,
      .xxfi_helo = on_helo,
      .xxfi_envfrom = on_mail,
      .xxfi_envrcpt = on_rcpt,
      .xxfi_header = on_header,
      .xxfi_body = on_body,
      .xxfi_eom = on_end_of_message,
      .xxfi_close = on_close,
      .xxfi_negotiate = on_negotiate,
  };
  if (count != 2 || smfi_setconn(words[1]) != MI_SUCCESS || smfi_register(filter) != MI_SUCCESS)
    return 2;
  return smfi_main();
}
