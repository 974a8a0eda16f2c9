// A client of one deployment (docs/protocol.md): it publishes requests and reads what the registry
// answers, over NATS.
/** @import {Members, Request, Target} from './requests.js' */
/** @import {NatsConnection} from '@nats-io/transport-node' */
import {setTimeout as pause} from 'node:timers/promises';

import {jetstream} from '@nats-io/jetstream';
import {connect} from '@nats-io/transport-node';

import {DOCUMENT, parse, Refusal} from './json.js';
import {answers, dotted, hashOf} from './requests.js';
import {Trust} from './trust.js';

/** There is no answer: no broker, no registry, or not in time. */
export class Unreachable extends Error {}

/** The other side's no to a question: a problem document (§8). */
export class Problem extends Error {
  /** @param {number} status @param {string} detail @param {Members} [statement] what the registry signed of it */
  constructor(status, detail, statement) {
    super(`${status}: ${detail}`);
    this.status = status;
    this.statement = statement;
  }
}

/**
 * A message that is believed: what it says, and its bytes as they came.
 * @typedef {{data: Members, bytes: Buffer}} Answer
 */

const AGAIN_AFTER = 50; // ms, before a question that was answered by 503
const SOON = 1000; // ms, in which an answer comes to a request that was published just now
const LOOK_AGAIN = 2000; // ms, before another look for an answer that was not heard

export class Client {
  #nc;
  #js;
  #trust = /** @type {Trust | undefined} */ (undefined);

  /** @param {string} url @param {number} timeout in ms, of each answer */
  static async connect(url, timeout) {
    try {
      return new Client(await connect({servers: url, name: 'omi-example-node', timeout}), timeout);
    } catch (cause) {
      throw new Unreachable(`no broker answers at ${url}: is \`omi dev\` running, or is --nats-url another?`, {cause});
    }
  }

  /** @param {NatsConnection} nc @param {number} timeout */
  constructor(nc, timeout) {
    this.#nc = nc;
    this.#js = jetstream(nc, {timeout});
    /** In ms, of each answer. */
    this.timeout = timeout;
  }

  async close() {
    await this.#nc.close();
  }

  /**
   * Learns who the registry is (§8). Its answer is not signed: without keys and a name from
   * elsewhere it is believed.
   * @param {string[]} trusted its public keys
   * @param {string} [expected] its origin, which requests are signed for
   */
  async meetRegistry(trusted, expected) {
    const {origin, public_keys: own} = await this.ask('omi.v1.lookup.registry');
    if (expected && origin !== expected) throw new Refusal('wrong_origin', `${origin} answers here, and not ${expected}`);
    this.#trust = new Trust(origin, trusted.length ? trusted : Array.isArray(own) ? own : []);
    return this.#trust;
  }

  /**
   * The registry's record of a service (§8.1).
   * @param {Target} target
   */
  async record(target) {
    return this.#believe().record(target, await this.#answer(`omi.v1.lookup.service.${dotted(target)}`));
  }

  /**
   * Whether the registry has never bound a service. Unless it has signed that, the answer is unknown (§8.1).
   * @param {Target} target
   */
  async neverBound(target) {
    try {
      await this.record(target);
      return false;
    } catch (error) {
      if (!(error instanceof Problem) || error.status !== 404 || !error.statement) throw error;
      this.#believe().neverBound(target, Buffer.from(JSON.stringify(error.statement)), Math.floor(Date.now() / 1000));
      return true;
    }
  }

  /**
   * Asks Auth whether a service's signature is good now (§8.2).
   * @param {Target} target
   * @param {Uint8Array} message
   * @param {string} signature
   */
  async verify(target, message, signature) {
    return this.ask('omi.v1.auth.verify', {...target, message: Buffer.from(message).toString('base64url'), signature});
  }

  /**
   * Asks a question of §8, and returns the answer's members.
   * @param {string} subject
   * @param {object} [question]
   */
  async ask(subject, question) {
    return parse(await this.#answer(subject, question), DOCUMENT);
  }

  /**
   * Publishes a request and waits for its answer. If JetStream has had its Nats-Msg-Id just now,
   * the message that had it may have been a stranger's: unless the answer comes soon, the request
   * goes without an id (§4).
   * @param {Target} target
   * @param {Request} request
   * @returns {Promise<Answer>}
   */
  async send(target, request) {
    if (await this.publish(request)) {
      const answer = await this.receipt(target, request, SOON).catch((error) => {
        if (!(error instanceof Unreachable)) throw error;
      });
      if (answer) return answer;
      await this.publish(request, {withId: false});
    }
    return this.receipt(target, request);
  }

  /**
   * Publishes a request (§4), and reports whether JetStream did not store it, since it has had one
   * of the same Nats-Msg-Id in the last second. Without an id it stores each, and the registry
   * itself must know what it had before.
   * @param {Request} request
   */
  async publish({subject, nonce, payload}, {withId = true} = {}) {
    try {
      const {duplicate} = await this.#js.publish(subject, payload, withId ? {msgID: `${subject}/${nonce}`} : {});
      return duplicate;
    } catch (cause) {
      throw new Unreachable(`the request was not stored: ${cause instanceof Error ? cause.message : cause}`, {cause});
    }
  }

  /**
   * Waits for the answer to a request: its data, and its bytes as the registry sent them. It
   * listens first and then looks for an answer that came before (§7.3); and looks again now and
   * then, because a published message is lost if the connection breaks. A message that can't
   * be believed says nothing, and is ignored.
   * @param {Target} target
   * @param {Request} request
   * @param {number} timeout in ms
   * @returns {Promise<Answer>}
   */
  async receipt(target, request, timeout = this.timeout) {
    const trust = this.#believe();
    const subject = `omi.v1.receipts.${dotted(target)}`;
    let refusal = /** @type {Refusal | undefined} */ (undefined);
    let take = (/** @type {Uint8Array} */ _payload) => {};
    const answered = new Promise((/** @type {(answer: Answer) => void} */ resolve) => {
      take = (payload) => {
        try {
          const data = trust.receipt(subject, payload);
          if (answers(data, request)) resolve({data, bytes: Buffer.from(payload)});
        } catch (error) {
          if (!(error instanceof Refusal)) throw error;
          refusal = error;
        }
      };
    });
    const heard = this.#nc.subscribe(`omi.v1.answers.${dotted(target)}`, {callback: (error, {data}) => error || take(data)});
    try {
      for (const deadline = Date.now() + timeout; Date.now() < deadline;) {
        await this.#look(target, request, subject, take);
        const answer = await Promise.race([answered, pause(LOOK_AGAIN, undefined, {ref: false})]);
        if (answer) return answer;
      }
    } finally {
      heard.unsubscribe();
    }
    const cause = refusal && new Error(`something came that can't be believed: ${refusal.message}`);
    throw new Unreachable('the registry has not answered the request in time', {cause});
  }

  /**
   * Looks for the answer to a request: the last receipt that the stream has of the service, and
   * then what the registry finds (§8.5).
   * @param {Target} target
   * @param {Request} request
   * @param {string} subject of the service's receipts
   * @param {(payload: Uint8Array) => void} take
   */
  async #look(target, {nonce, payload}, subject, take) {
    const last = await this.#nc.request(`$JS.API.DIRECT.GET.OMI_RECEIPTS.${subject}`, '', {timeout: this.timeout}).catch(() => undefined);
    if (last?.data.length) take(last.data); // it has no body where there is no message
    try {
      take(await this.#answer(`omi.v1.lookup.receipt.${dotted(target)}`, {request_nonce: nonce, request_hash: hashOf(payload)}));
    } catch (error) {
      if (!(error instanceof Problem || error instanceof Unreachable)) throw error; // there is no answer yet, or no one to ask
    }
  }

  /**
   * Reads the events that are kept of a service, oldest first, until it has the one of this nonce
   * (§7.1).
   * @param {Target} target
   * @param {string} nonce
   */
  async eventsUntil(target, nonce) {
    const trust = this.#believe();
    const events = await this.#readUntil('OMI_INVALIDATIONS', `omi.v1.invalidations.${dotted(target)}`,
      (subject, payload) => trust.invalidation(subject, payload), (event) => event.nonce === nonce);
    return events.map(({data}) => data);
  }

  /**
   * Reads what a stream keeps of one subject, from its first message on, and then what comes, until
   * it has what is wanted. A message that open refuses says nothing, and is ignored.
   * @param {string} stream
   * @param {string} subject
   * @param {(subject: string, payload: Buffer) => Members} open
   * @param {(data: Members) => boolean} wanted
   */
  async #readUntil(stream, subject, open, wanted) {
    const consumer = await this.#js.consumers.get(stream, {filter_subjects: subject}); // ordered, and no durable
    const messages = await consumer.consume();
    const timer = setTimeout(() => messages.stop(), this.timeout);
    const read = /** @type {Answer[]} */ ([]);
    let refusal;
    try {
      for await (const message of messages) {
        try {
          const bytes = Buffer.from(message.data);
          const data = open(message.subject, bytes);
          read.push({data, bytes});
          if (wanted(data)) return read;
        } catch (error) {
          if (!(error instanceof Refusal)) throw error;
          refusal = error;
        }
      }
    } finally {
      clearTimeout(timer);
      await messages.close();
      await consumer.delete();
    }
    const cause = refusal && new Error(`something came that can't be believed: ${refusal.message}`);
    throw new Unreachable(`what was waited for has not come on ${subject} in time`, {cause});
  }

  /**
   * An answer's bytes. 503 means: try again (§8).
   * @param {string} subject
   * @param {object} [question]
   */
  async #answer(subject, question) {
    for (const deadline = Date.now() + this.timeout; ; await pause(AGAIN_AFTER)) {
      const payload = question && JSON.stringify(question);
      const reply = await this.#nc.request(subject, payload, {timeout: this.timeout}).catch((cause) => {
        throw new Unreachable(`nobody answers ${subject}: is \`omi dev\` running there?`, {cause});
      });
      const status = Number(reply.headers?.get('Nats-Service-Error-Code'));
      if (!status) return reply.data;
      if (status !== 503 || Date.now() > deadline) {
        const {detail, statement} = parse(reply.data, DOCUMENT);
        throw new Problem(status, detail ?? reply.headers?.get('Nats-Service-Error'), statement);
      }
    }
  }

  #believe() {
    if (!this.#trust) throw new Error('meetRegistry comes first');
    return this.#trust;
  }
}
