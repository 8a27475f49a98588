/* Whether of two accesses to the same bytes, one of them a write, one happened before the other: vector clocks.
 *
 * An actor is a thread of a kernel or a copy in bulk. Its clock counts what it did between two meetings; what it knows
 * of the others' clocks comes from barriers (race_meet) and from places at which some release and others acquire
 * (race_place). Every word of 4 bytes that was touched keeps its last write and the reads since then (FastTrack,
 * Flanagan and Freund 2009). */
#ifndef PTX_RACES_H
#define PTX_RACES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct race_clocks race_clocks; /* one clock of every actor; what is known of them is shared, and counted */

typedef struct race_actor {
    uint32_t id, clock;
    race_clocks *known;
    const void *place; /* acquired last, */
    uint32_t version;  /* as it was then */
} race_actor;

/* What was released at a place. */
typedef struct race_place {
    race_clocks *released;
    uint32_t version;
} race_place;

typedef struct race_word {
    uint32_t launch; /* of another launch: nobody has touched it */
    uint32_t writer, write_clock, write_line;
    uint32_t reader, read_clock, read_line;
    uint8_t written, read; /* bytes, one bit each */
    bool strong, has_reader, has_writer;
    race_clocks *reads; /* clocks of the readers, where there are several; NULL: there is one at most */
} race_word;

/* Two accesses that race. */
typedef struct race_found {
    uint32_t other, other_line; /* actor and line of the first; */
    bool other_writes;
} race_found;

/* A launch with `actors` actors begins; what was known before, of actors, places and words, is forgotten. */
void race_begin(uint32_t actors);
void race_actor_begin(race_actor *actor, uint32_t id);
/* An actor begins again with what another knows now. */
void race_actor_follow(race_actor *actor, race_actor *other);

/* Those who met know all of each other. */
void race_meet(race_actor **actors, uint32_t count);
void race_release(race_place *place, race_actor *actor);
void race_acquire(race_actor *actor, race_place *place);
/* place knows what `from` knows; `from` begins anew. */
void race_pass(race_place *place, race_place *from);

/* An access to `bytes` (one bit each) of a word. false: a race. */
bool race_touch(race_word *word, race_actor *actor, uint32_t line, uint8_t bytes, bool writes, bool strong,
                race_found *found);
#endif
