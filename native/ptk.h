/*
 * PinTok core: exact tokenization in fixed memory, as a library and as a datapath.
 *
 * This header is the manual and the only one that users outside of native/ include. It brings in
 * the contracts of the parts; each of them states its own functions, and this text says how they
 * fit.
 *
 *
 * 1. Concepts
 *
 *   vocabulary  the source of a tokenizer: tokenizer.json, ranks, tekken.json, .model, vocab.txt
 *   image       the vocabulary compiled to one file of offsets: verified once, then trusted and
 *   shared
 *   tokenizer   an image made ready to run: split patterns, normalizer, merges
 *   piece       what the pre-tokenizer yields; a piece becomes ids without regard to its neighbours
 *   request     one PTK1 message of a client; reply: the answer to it
 *   verdict     why a request was answered as it was (gen/WIRE.md); everything else is OK
 *   engine      the function from a request's bytes to its reply's bytes; knows no socket and no
 *   clock
 *   poller      one thread on one core with one queue of the network card, an engine, and its own
 *   memory
 *
 *                    image ──> tokenizer ──> models ──> engine ──> poller (AF_XDP) or socket worker
 *                              (shared, immutable)      (one per thread)
 *
 *
 * 2. Life
 *
 *   As a library, three steps and no network:
 *
 *       struct ptk_image image;
 *       struct ptk_tokenizer *tokenizer;
 *       struct ptk_err err;
 *       if (ptk_image_open(path, PTK_IMAGE_HOLD_COPY, &image, &err) != 0 ||
 *           ptk_tokenizer_open(&image, &tokenizer, &err) != 0) {
 *           puts(err.text);
 *       }
 *       struct ptk_work_limits limits = {.text_len_max = 1 << 20};
 *       struct ptk_work *work = ptk_work_init(aligned_alloc(64, ptk_work_len(&limits)), &limits);
 *       struct ptk_cache *cache = ptk_cache_init(aligned_alloc(64, 1 << 20), 1 << 20);
 *       struct ptk_encode_request request = {.text = text, .text_len = len,
 *                                            .options = PTK_WIRE_OPTIONS_ADD_SPECIAL_TOKENS |
 *                                                       PTK_WIRE_OPTIONS_PARSE_SPECIAL};
 *       struct ptk_encoding encoding = {.ids = ids, .cap = cap};
 *       enum ptk_verdict verdict = ptk_tokenizer_encode(tokenizer, work, cache, &request,
 *       &encoding);
 *
 *   As an engine under a network of your own:
 *
 *       ptk_models_init(&models);
 *       ptk_models_set(&models, 0, &model);
 *       struct ptk_engine *engine = ptk_engine_init(memory, &limits, &models);
 *       for (;;) {
 *           ptk_engine_refresh(engine);
 *           reply_len = ptk_engine_handle(engine, datagram, len, reply, reply_cap, &verdict);
 *       }
 *
 *   As a server: the program ptk-datapath (serve/ptk_datapath_main.c), which pintok-server starts
 *   and watches. Set-up is in two phases. The first opens, maps, locks, binds and attaches with the
 *   capabilities it needs; the second drops all of them, and from then on the process allocates
 *   nothing and opens nothing but images that the control plane names. A successor can take its
 *   place without a packet lost (serve/ptk_server_handover.h).
 *
 *
 * 3. Threads
 *
 *   Images, tokenizers and models are immutable and shared by any number of threads. A work, a
 *   cache, an engine and everything below a poller belong to one thread. Nothing shared is written
 *   by two threads:
 *
 *       word                              writer            readers
 *       slot of the model table, epoch    main thread       pollers, at the boundary of their loops
 *       epoch seen                        its poller        main thread, before it frees a model
 *       counters, histogram, state        its poller        control plane, through shared memory
 *       mailbox                           control plane     main thread
 *       hold, stop                        main thread       its worker, between two loops
 *       held, stopped                     its worker        main thread
 *       baton of a hand-over              both processes    both, by compare-and-exchange
 *
 *   Each of them has a cache line of its own, and each access states its memory order.
 *
 *
 * 4. Memory
 *
 *   Everything is sized and touched before the first packet; ptk_work_len, ptk_engine_len and the
 *   like say how much. Afterwards there is no allocation, no system call but the ring wake-up, no
 *   lock, and by design no page fault. Caches are bounded and forget; they never grow.
 *
 *
 * 5. Errors
 *
 *   Three kinds, never mixed:
 *     our mistake              PTK_ASSERT prints file, line and expression and aborts
 *     the other side's         a verdict: counted, answered where the protocol says so, never fatal
 *     the machine says no      set-up only: a negative errno and one sentence in struct ptk_err
 *                              that names the thing, the value and the remedy
 *
 *   Bytes from outside are checked completely at one door each: the frame (net/ptk_frame.h), the
 *   request (wire/ptk_wire_request.h), the image (ptk_image_view), the configuration
 *   (ptk-datapath's options), the hand-over (serve/ptk_server_handover.h). Inside they are trusted.
 *
 *
 * 6. Exactness
 *
 *   Ids equal those of the reference that belongs to the image's source and profile, for every
 *   input, or opening the image fails with a sentence. Work is linear in the text for every model
 *   and input.
 */
#ifndef PTK_H
#define PTK_H

#include "base/ptk_err.h"       /* set-up errors */
#include "gen/ptk_wire_gen.h"   /* verdicts, options, operations: the protocol's names */
#include "image/ptk_image.h"    /* open and verify an image */
#include "algo/ptk_tokenizer.h" /* text to ids and back */
#include "serve/ptk_models.h"   /* the table of loaded models */
#include "serve/ptk_engine.h"   /* request bytes to reply bytes */

#endif
