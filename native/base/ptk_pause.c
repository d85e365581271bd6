/* Who is active, and how long slices are. */
#include "base/ptk_pause.h"

_Thread_local struct ptk_pause *ptk_pause_active = NULL;

static void begin_slice(struct ptk_pause *pause)
{
    pause->resumed_at = ptk_cycles();
    pause->due = pause->resumed_at + pause->slice_cycles;
}

static void end_slice(struct ptk_pause *pause)
{
    const uint64_t len = ptk_cycles() - pause->resumed_at;
    pause->longest = len > pause->longest ? len : pause->longest;
    pause->worked += len;
}

void ptk_pause_begin(struct ptk_pause *pause)
{
    pause->outer = ptk_pause_active;
    pause->slices = 0;
    pause->longest = 0;
    pause->worked = 0;
    begin_slice(pause);
    ptk_pause_active = pause;
}

void ptk_pause_end(struct ptk_pause *pause)
{
    PTK_ASSERT(ptk_pause_active == pause);
    end_slice(pause);
    ptk_pause_active = pause->outer;
}

void ptk_pause_run(struct ptk_pause *pause)
{
    PTK_ASSERT(ptk_pause_active == pause);
    end_slice(pause);
    pause->slices++;
    ptk_pause_active = NULL;
    pause->run(pause->self);
    ptk_pause_active = pause;
    begin_slice(pause);
}
