/* warp.cc: barriers of a block, and the operations of a warp: each thread leaves its value and
 * waits; the last one to come hands out the results. Fails where the threads are not all at the
 * same operation. Knows nothing of how threads are run. */
#include "dev/emu/threads.h"

static int number_of(const EmuThread *t) {
    return (int)(t - emu_machine.threads);
}

/* ---- barriers -------------------------------------------------------------------------------- */

static void fail_divergent(const EmuThread *other, const EmuSite *site) {
    emu_fail("a barrier in divergent flow: %s at %s:%d, but thread %d waits in %s at %s:%d",
        site->what, site->file, site->line, number_of(other), other->site.what, other->site.file,
        other->site.line);
}

int emu_barrier(EmuVote vote, int predicate, const EmuSite &site) {
    EmuMachine *m = &emu_machine;
    EmuThread *me = m->current;
    if (!me) emu_fail("%s outside of a kernel", site.what);
    if (m->arrived == 0) m->barrier_site = me, m->trues = 0;
    if (m->arrived > 0 && !emu_same_site(&m->barrier_site->site, &site))
        fail_divergent(m->barrier_site, &site);
    me->site = site;
    me->state = EMU_AT_BARRIER;
    m->trues += predicate != 0;
    if (++m->arrived == m->count) {
        int all[EMU_MAX_THREADS];
        for (int i = 0; i < m->count; i++) all[i] = i;
        m->arrived = 0;
        m->barriers++;
        m->barrier_result = vote == EMU_OR    ? m->trues > 0
                            : vote == EMU_AND ? m->trues == m->count
                                              : m->trues;
        emu_ready(all, m->count);
    }
    emu_wait();
    return m->barrier_result;
}

/* ---- warps ----------------------------------------------------------------------------------- */

enum { BITS = -1, ORDERS_MEMORY = -2 }; /* in place of a lane to read */

static int lowest(unsigned lanes) {
    return __builtin_ctz(lanes);
}

/* Lanes that cannot come: they have ended, or the block has no such thread. */
static void require_alive(int first, unsigned mask, const EmuSite *site) {
    const int lanes = emu_machine.count - first;
    const unsigned exist = lanes >= EMU_WARP ? 0xffffffffu : (1u << lanes) - 1;
    const unsigned ended = emu_machine.ended[first / EMU_WARP];
    if (!(mask & (ended | ~exist))) return;
    emu_fail("%s with mask %08x at %s:%d: lane %d %s", site->what, mask, site->file, site->line,
        lowest(mask & (ended | ~exist)),
        mask & ended ? "has ended" : "is past the end of the block");
}

static void require_same(int first, unsigned mask, const EmuThread *me) {
    for (unsigned rest = mask; rest; rest &= rest - 1) {
        const EmuThread *t = &emu_machine.threads[first + lowest(rest)];
        if (t->mask == mask && emu_same_site(&t->site, &me->site)) continue;
        emu_fail("%s with mask %08x at %s:%d: lane %d waits in %s with mask %08x at %s:%d",
            me->site.what, mask, me->site.file, me->site.line, lowest(rest), t->site.what, t->mask,
            t->site.file, t->site.line);
    }
}

static void require_mask(unsigned mask, int lane, int source, const EmuSite *site) {
    if (!(mask >> lane & 1u))
        emu_fail("%s with mask %08x at %s:%d: lane %d is not in it", site->what, mask, site->file,
            site->line, lane);
    if (source >= 0 && !(mask >> source & 1u))
        emu_fail("%s with mask %08x at %s:%d: lane %d reads lane %d, which is not in it",
            site->what, mask, site->file, site->line, lane, source);
}

/* All lanes of the mask are here. */
static void hand_out(int first, unsigned mask) {
    EmuThread *lanes = emu_machine.threads + first;
    int ready[EMU_WARP], count = 0;
    uint64_t bits = 0;
    for (unsigned rest = mask; rest; rest &= rest - 1) {
        const int lane = lowest(rest);
        ready[count++] = first + lane;
        bits |= (lanes[lane].value & 1u) << lane;
    }
    for (unsigned rest = mask; rest; rest &= rest - 1) {
        EmuThread *t = &lanes[lowest(rest)];
        t->result = t->source < 0 ? bits : lanes[t->source].value;
    }
    emu_machine.waiting[first / EMU_WARP] &= ~mask;
    if (lanes[ready[0] - first].source == ORDERS_MEMORY) emu_machine.syncs[first / EMU_WARP]++;
    emu_ready(ready, count);
}

/* Meets the lanes of the mask; the result is the value of the lane `source`, or else the lowest
 * bits of all values. */
static uint64_t meet(unsigned mask, uint64_t value, int source, const EmuSite *site) {
    EmuThread *me = emu_machine.current;
    const int number = number_of(me), lane = number % EMU_WARP, first = number - lane;
    unsigned *waiting = &emu_machine.waiting[first / EMU_WARP];
    require_mask(mask, lane, source, site);
    require_alive(first, mask, site);
    me->site = *site;
    me->mask = mask, me->value = value, me->source = source;
    me->state = EMU_AT_WARP;
    *waiting |= 1u << lane;
    if ((*waiting & mask) == mask) {
        require_same(first, mask, me);
        hand_out(first, mask);
    }
    emu_wait();
    return me->result;
}

static int current_lane(const EmuSite *site) {
    const EmuMachine *m = &emu_machine;
    if (!m->current) emu_fail("%s outside of a kernel", site->what);
    return number_of(m->current) % EMU_WARP;
}

uint64_t emu_shuffle(
    EmuShuffle how, unsigned mask, uint64_t value, int by, int width, const EmuSite &site) {
    const int lane = current_lane(&site);
    if (width < 1 || width > EMU_WARP || (width & (width - 1)))
        emu_fail("%s at %s:%d with a width of %d", site.what, site.file, site.line, width);
    const int low = lane & ~(width - 1), high = low + width;
    int source = lane;
    if (how == EMU_INDEX) source = low + (by & (width - 1));
    if (how == EMU_UP && lane - by >= low) source = lane - by;
    if (how == EMU_DOWN && lane + by < high) source = lane + by;
    if (how == EMU_XOR && (lane ^ by) < high) source = lane ^ by;
    if (source < 0 || source >= EMU_WARP)
        emu_fail("%s at %s:%d by %d", site.what, site.file, site.line, by);
    return meet(mask, value, source, &site);
}

/* Alone among the warp's operations it orders memory. */
void emu_sync_warp(unsigned mask, const EmuSite &site) {
    current_lane(&site);
    meet(mask, 0, ORDERS_MEMORY, &site);
}

unsigned emu_ballot(unsigned mask, bool predicate, const EmuSite &site) {
    current_lane(&site);
    return (unsigned)meet(mask, predicate, BITS, &site);
}
