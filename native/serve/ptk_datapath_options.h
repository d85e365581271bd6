/*
 * The command line of ptk-datapath. It is written by the control process; a person meets it only
 * when looking for a fault, so it has long options only and refuses everything it does not know.
 */
#ifndef PTK_DATAPATH_OPTIONS_H
#define PTK_DATAPATH_OPTIONS_H

#include "serve/ptk_server.h"

/* The text of --help, ending in a newline. */
extern const char PTK_DATAPATH_USAGE[];

/*
 * ptk_datapath_options_parse fills `config` from the arguments, with defaults for what is not
 * named. Returns 0; 1 when --help was asked for; or -EINVAL and a sentence that names the option
 * and the value. `config` keeps pointers into argv.
 */
int ptk_datapath_options_parse(int argc, char **argv, struct ptk_server_config *config,
                               struct ptk_err *err);

#endif
