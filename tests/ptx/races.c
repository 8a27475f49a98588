#include "races.h"

#include <stdlib.h>
#include <string.h>

struct race_clocks {
    race_clocks *older, *next; /* of all, of the free ones */
    uint32_t holders, seen;    /* seen: the meeting that has joined it */
    uint32_t clock[];
};

static struct {
    uint32_t actors, launch, meeting;
    race_clocks *newest, *free;
} all;

static race_clocks *take(void)
{
    race_clocks *clocks = all.free;
    if (clocks != NULL) {
        all.free = clocks->next;
    } else {
        if ((clocks = malloc(sizeof *clocks + all.actors * sizeof(uint32_t))) == NULL)
            abort();
        clocks->older = all.newest;
        all.newest = clocks;
    }
    clocks->holders = 1;
    clocks->seen = 0;
    return clocks;
}

static race_clocks *take_zeros(void)
{
    race_clocks *clocks = take();
    memset(clocks->clock, 0, all.actors * sizeof *clocks->clock);
    return clocks;
}

static race_clocks *take_copy(const race_clocks *of)
{
    race_clocks *clocks = take();
    memcpy(clocks->clock, of->clock, all.actors * sizeof *clocks->clock);
    return clocks;
}

static void drop(race_clocks *clocks)
{
    if (clocks == NULL || --clocks->holders > 0)
        return;
    clocks->next = all.free;
    all.free = clocks;
}

static void join(race_clocks *into, const race_clocks *from)
{
    for (uint32_t i = 0; i < all.actors; i++)
        if (from->clock[i] > into->clock[i])
            into->clock[i] = from->clock[i];
}

void race_begin(uint32_t actors)
{
    all.free = NULL;
    for (race_clocks *clocks = all.newest, *older; clocks != NULL; clocks = older) {
        older = clocks->older;
        clocks->next = all.free;
        all.free = clocks;
        if (actors != all.actors)
            free(clocks);
    }
    if (actors != all.actors)
        all.newest = all.free = NULL;
    all.actors = actors;
    all.launch++;
}

void race_actor_begin(race_actor *actor, uint32_t id)
{
    *actor = (race_actor){.id = id, .clock = 1, .known = take_zeros()};
}

void race_actor_follow(race_actor *actor, race_actor *other)
{
    race_clocks *known = take_copy(other->known);
    known->clock[other->id] = other->clock++;
    drop(actor->known);
    actor->known = known;
    actor->clock++;
    actor->place = NULL;
}

void race_meet(race_actor **actors, uint32_t count)
{
    race_clocks *known = take_copy(actors[0]->known);
    actors[0]->known->seen = ++all.meeting;
    for (uint32_t i = 1; i < count; i++)
        if (actors[i]->known->seen != all.meeting) {
            actors[i]->known->seen = all.meeting;
            join(known, actors[i]->known);
        }
    for (uint32_t i = 0; i < count; i++)
        known->clock[actors[i]->id] = actors[i]->clock++;
    known->holders = count;
    for (uint32_t i = 0; i < count; i++) {
        drop(actors[i]->known);
        actors[i]->known = known;
    }
}

void race_release(race_place *place, race_actor *actor)
{
    if (place->released == NULL)
        place->released = take_zeros();
    join(place->released, actor->known);
    place->released->clock[actor->id] = actor->clock++;
    place->version++;
}

void race_acquire(race_actor *actor, race_place *place)
{
    if (place->released == NULL || (actor->place == place && actor->version == place->version))
        return;
    race_clocks *known = take_copy(actor->known);
    join(known, place->released);
    drop(actor->known);
    actor->known = known;
    actor->place = place;
    actor->version = place->version;
}

void race_pass(race_place *place, race_place *from)
{
    if (from->released == NULL)
        return;
    if (place->released == NULL)
        place->released = from->released;
    else {
        join(place->released, from->released);
        drop(from->released);
    }
    place->version++;
    from->released = NULL;
}

/* ---- words ---- */

static bool is_before(uint32_t id, uint32_t clock, const race_actor *actor)
{
    return id == actor->id || clock <= actor->known->clock[id];
}

static bool reads_are_before(const race_word *word, const race_actor *actor, race_found *found)
{
    if (word->reads == NULL) {
        if (!word->has_reader || is_before(word->reader, word->read_clock, actor))
            return true;
        found->other = word->reader;
        return false;
    }
    for (uint32_t id = 0; id < all.actors; id++)
        if (word->reads->clock[id] != 0 && !is_before(id, word->reads->clock[id], actor)) {
            found->other = id;
            return false;
        }
    return true;
}

static void note_read(race_word *word, const race_actor *actor, uint32_t line, uint8_t bytes)
{
    if (word->reads == NULL && word->has_reader && word->reader != actor->id &&
        !is_before(word->reader, word->read_clock, actor)) {
        word->reads = take_zeros();
        word->reads->clock[word->reader] = word->read_clock;
    }
    if (word->reads != NULL)
        word->reads->clock[actor->id] = actor->clock;
    word->reader = actor->id;
    word->read_clock = actor->clock;
    word->read_line = line;
    word->read = (uint8_t)(word->has_reader ? word->read | bytes : bytes);
    word->has_reader = true;
}

bool race_touch(race_word *word, race_actor *actor, uint32_t line, uint8_t bytes, bool writes, bool strong,
                race_found *found)
{
    if (word->launch != all.launch)
        *word = (race_word){.launch = all.launch};
    if (word->has_writer && (word->written & bytes) && !(strong && word->strong) &&
        !is_before(word->writer, word->write_clock, actor)) {
        *found = (race_found){word->writer, word->write_line, true};
        return false;
    }
    if (!writes) {
        if (!strong) /* what strong accesses read, strong ones write */
            note_read(word, actor, line, bytes);
        return true;
    }
    *found = (race_found){0, word->read_line, false};
    if ((word->read & bytes) && !reads_are_before(word, actor, found))
        return false;
    drop(word->reads);
    word->reads = NULL;
    word->has_reader = false;
    word->read = 0;
    word->writer = actor->id;
    word->write_clock = actor->clock;
    word->write_line = line;
    word->written = bytes;
    word->strong = strong;
    word->has_writer = true;
    return true;
}
