// The life of a service's key, seen from the service: bound, used, rotated, and what must not
// rotate it. Every answer is checked against docs/protocol.md, and the first that differs from that
// page ends the story.
/** @import {Answer, Client} from './client.js' */
/** @import {Members, Request, Target} from './requests.js' */
import {setTimeout as pause} from 'node:timers/promises';
import {inspect, isDeepStrictEqual} from 'node:util';

import {Unreachable} from './client.js';
import {newNonce, SigningKey} from './keys.js';
import {bindingRequest, dotted, rotationRequest} from './requests.js';

/** Something is not as the protocol says. */
export class Unexpected extends Error {}

const POLL = 20; // ms between two looks at a record

/** One service, and the two keys of its life. */
export class Story {
  #client;
  #target;
  #origin;
  #say;
  // A real service has each new key on its disk before it asks for it (§5.4). These end with the
  // program.
  #first = SigningKey.generate();
  #second = SigningKey.generate();
  #accepted = 0; // signatures, by Auth

  /**
   * @param {Client} client
   * @param {Target} target a service that was never bound
   * @param {string} origin of the registry that its requests are for
   * @param {(step: string, what: string) => void} say shows a step to a person
   */
  constructor(client, target, origin, say) {
    this.#client = client;
    this.#target = target;
    this.#origin = origin;
    this.#say = say;
  }

  /**
   * Tells it, and returns what there is to know at its end.
   * @param {SigningKey} masterKey of the app's developer
   */
  async tell(masterKey) {
    same(await this.#client.neverBound(this.#target), true, 'whether the service was never bound');
    await this.bind(masterKey);
    await this.verify(this.#first, {key: 'current', sequence: 1});

    const request = rotationRequest(this.#target, {origin: this.#origin, currentKey: this.#first, newKey: this.#second});
    const receipt = await this.rotate(request);
    await this.switchKeys(receipt.data);
    await this.verify(this.#second, {key: 'current', sequence: 2});
    await this.verify(this.#first, {key: 'grace', expires: receipt.data.grace_period_expiry});

    await this.sendAgain(request, receipt);
    await this.forge(request, receipt);
    return this.lookUp(receipt.data);
  }

  /**
   * Binding (§5.2). There is no old key to go on with: the first one is used once everybody knows
   * it.
   * @param {SigningKey} masterKey
   */
  async bind(masterKey) {
    const request = bindingRequest(this.#target, {origin: this.#origin, masterKey, newKey: this.#first});
    const {data: receipt} = await this.#committed(request, 1, this.#first);
    this.#say('bind', `committed as sequence 1, ${this.#first.publicKey}`);
    await this.#event(receipt, {event: 'SERVICE_BINDING', new_public_key: this.#first.publicKey});
    const applied = await this.#appliedWithin(this.#client.timeout, receipt);
    if (!applied) throw new Unreachable('not every durable has applied the binding in time');
  }

  /**
   * Rotation (§5.1).
   * @param {Request} request
   */
  async rotate(request) {
    await this.#client.publish({...request, payload: Buffer.from('{')}); // a stranger was quicker with its id (§4)
    const receipt = await this.#committed(request, 2, this.#second);
    this.#say('rotate', `committed as sequence 2, ${this.#second.publicKey}`);
    await this.#event(receipt.data, {
      event: 'KEY_ROTATION', old_public_key: this.#first.publicKey, new_public_key: this.#second.publicKey,
    });
    return receipt;
  }

  /**
   * Goes on with the old key, which is in grace, until everybody knows the new one or half of the
   * grace is over (§5.4).
   * @param {Members} receipt
   */
  async switchKeys(receipt) {
    const half = (receipt.grace_period_expiry - receipt.timestamp) * 1000 / 2;
    const before = this.#accepted;
    const applied = await this.#appliedWithin(half, receipt, () => this.#verified(this.#first, {}));
    const why = applied ? 'everybody knows the new one' : 'half of the grace period is over';
    this.#say('switch', `${this.#accepted - before} more signatures by the old key, all accepted; ${why}`);
  }

  /**
   * The same bytes again are the same request, however often they come (§6): the answer is the
   * first one.
   * @param {Request} request
   * @param {Answer} first
   */
  async sendAgain(request, first) {
    await this.#client.publish(request, {withId: false}); // with its id, JetStream might keep it from the registry
    same((await this.#client.receipt(this.#target, request)).bytes, first.bytes, 'the answer to the same bytes');
    this.#say('again', 'the same bytes have the same receipt, byte for byte');
  }

  /**
   * A stranger's request is refused. Its refusal has the nonce of our own request, and still is no
   * answer to it (§7.3): asked for the answer to our own, the registry gives the first one.
   * @param {Request} request
   * @param {Answer} first
   */
  async forge(request, first) {
    const [stranger, newKey] = [SigningKey.generate(), SigningKey.generate()];
    const forged = rotationRequest(this.#target, {
      origin: this.#origin, currentKey: stranger, newKey, nonce: request.nonce,
    });
    await this.#client.publish(forged, {withId: false}); // its id would be that of our own
    const {event, reason} = (await this.#client.receipt(this.#target, forged)).data;
    same([event, reason], ['REQUEST_REJECTED', 'invalid_signature'], 'the answer to a forged request');
    same((await this.#client.receipt(this.#target, request)).bytes, first.bytes, 'the answer to our own request');
    this.#say('forge', `refused, ${reason}`);
  }

  /**
   * The record at the end (§8.1): neither the repetition nor the forgery has left a trace.
   * @param {Members} receipt
   */
  async lookUp(receipt) {
    const record = await this.#client.record(this.#target);
    const grace = [{public_key: this.#first.publicKey, expires: receipt.grace_period_expiry}];
    same([record.status, record.sequence], ['active', 2], "the record's status and sequence");
    same(record.current.public_key, this.#second.publicKey, "the record's current key");
    same(record.grace.map((/** @type {Members} */ key) => ({...key})), grace, "the record's keys in grace");
    this.#say('record', 'sequence 2, and one key in grace: neither of the two has changed anything');
    return {...this.#target, sequence: 2, public_key: this.#second.publicKey, grace, signatures_accepted: this.#accepted};
  }

  /**
   * Signs something and asks Auth about it, as [Story.#verified] does, and says so.
   * @param {SigningKey} key
   * @param {Members} want
   */
  async verify(key, want) {
    const {result, key: which, expires} = await this.#verified(key, want);
    this.#say('verify', `Auth says ${result}, key: ${which}${expires ? `, until ${clock(expires)}` : ''}`);
  }

  /**
   * Signs something, and asks Auth whether that is good now (§8.2). It must be, in the way that
   * want says.
   * @param {SigningKey} key
   * @param {Members} want
   */
  async #verified(key, want) {
    const message = Buffer.from(`a message of ${dotted(this.#target)}, ${newNonce()}`);
    const answer = await this.#client.verify(this.#target, message, key.sign(message));
    sameMembers(answer, {result: 'accepted', public_key: key.publicKey, ...want}, "Auth's answer");
    this.#accepted++;
    return answer;
  }

  /**
   * Sends a request that must stand, and returns its receipt.
   * @param {Request} request
   * @param {number} sequence
   * @param {SigningKey} key that is current afterwards
   */
  async #committed(request, sequence, key) {
    const receipt = await this.#client.send(this.#target, request);
    const {event, reason, detail} = receipt.data;
    if (event !== 'REQUEST_COMMITTED') throw new Unexpected(`the registry refused the request: ${reason}: ${detail}`);
    sameMembers(receipt.data, {sequence, public_key: key.publicKey}, 'the receipt');
    return receipt;
  }

  /**
   * Reads the events up to the one that a receipt names: each signed by the registry, in sequence
   * without a gap (§7.1).
   * @param {Members} receipt
   * @param {Members} want of the event
   */
  async #event({event_nonce, sequence, grace_period_expiry}, want) {
    const events = await this.#client.eventsUntil(this.#target, event_nonce);
    same(events.map((event) => event.sequence), events.map((_, i) => i + 1), 'the sequences of the events');
    sameMembers(events[events.length - 1], {...want, sequence, grace_period_expiry}, 'the event');
    this.#say('event', `${want.event}, sequence ${sequence}, signed by the registry`);
  }

  /**
   * Waits until every durable has applied a receipt's change (§8.1), and reports whether they did
   * in time.
   * @param {number} most in ms
   * @param {Members} receipt
   * @param {() => Promise<unknown>} meanwhile is done before each look
   */
  async #appliedWithin(most, receipt, meanwhile = async () => {}) {
    for (const end = Date.now() + most; Date.now() < end; await pause(POLL)) {
      await meanwhile();
      const {sequence, propagation} = await this.#client.record(this.#target);
      const durables = Object.keys(propagation).sort();
      if (sequence >= receipt.sequence && durables.length > 0 && durables.every((name) => propagation[name] === true)) {
        this.#say('applied', `by ${durables.join(' and ')}`);
        return true;
      }
    }
    return false;
  }
}

/** @param {Members} got @param {Members} want @param {string} what */
function sameMembers(got, want, what) {
  for (const [name, value] of Object.entries(want)) same(got[name], value, `${what}, ${name}`);
}

/** @param {unknown} got @param {unknown} want @param {string} what */
function same(got, want, what) {
  if (!isDeepStrictEqual(got, want)) throw new Unexpected(`${what}: got ${inspect(got)}, want ${inspect(want)}`);
}

/** @param {number} seconds */
const clock = (seconds) => new Date(seconds * 1000).toTimeString().slice(0, 8);
