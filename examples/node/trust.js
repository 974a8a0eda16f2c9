// The registry's messages (docs/protocol.md §7, §8.1): everything that this program believes of the
// registry enters it here.
/** @import {Members, Target} from './requests.js' */
import {canonical, DOCUMENT, isInteger, isObject, MESSAGE, parse, Refusal} from './json.js';
import {isPublicKey, isSignature, verifies} from './keys.js';
import {dotted, isTarget} from './requests.js';

/**
 * Reads an envelope of version 1.0 (§3). It does not verify the signature.
 * @param {Uint8Array} bytes
 */
export function open(bytes, limits = MESSAGE) {
  const {version, data, signature, ...others} = parse(bytes, limits);
  if (typeof version !== 'string') throw invalid('version');
  if (version !== '1.0') throw new Refusal('unsupported_version', 'this program speaks version 1.0');
  if (!isObject(data)) throw invalid('data');
  if (!isSignature(signature)) throw invalid('signature');
  return {data, signature, others};
}

/** Whom a reader believes: the keys of one registry, and its domain name. */
export class Trust {
  /**
   * @param {string} origin
   * @param {string[]} publicKeys
   */
  constructor(origin, publicKeys) {
    if (!isString(origin)) throw invalid('origin');
    if (!publicKeys.length || !publicKeys.every(isPublicKey)) throw invalid('public_keys');
    this.origin = origin;
    this.publicKeys = publicKeys;
  }

  /**
   * An event of the invalidation stream (§7.1).
   * @param {string} subject
   * @param {Uint8Array} payload
   */
  invalidation(subject, payload) {
    const data = this.#data(payload);
    check(data, kindOf(EVENTS, data.event));
    const {event, grace_period_expiry: expiry, timestamp} = data;
    if (event === 'KEY_ROTATION' ? expiry < timestamp : expiry !== timestamp) throw invalid('grace_period_expiry');
    if (data.end_earlier && expiry !== timestamp) throw invalid('end_earlier');
    sameTarget(subject, `omi.v1.invalidations.${dotted(data)}`);
    return data;
  }

  /**
   * A message of the receipt stream (§7.3).
   * @param {string} subject
   * @param {Uint8Array} payload
   */
  receipt(subject, payload) {
    const data = this.#data(payload);
    check(data, kindOf(RECEIPTS, data.event));
    sameTarget(subject, `omi.v1.receipts.${dotted(data)}`);
    return data;
  }

  /**
   * The record of the service that was asked about (§8.1).
   * @param {Target} target
   * @param {Uint8Array} document
   */
  record(target, document) {
    const data = this.#data(document, DOCUMENT);
    check(data, RECORD);
    if (data.status === 'active') check(data.current, {public_key: isPublicKey, since: isInteger});
    for (const key of data.grace) check(key, {public_key: isPublicKey, expires: isInteger});
    sameTarget(dotted(target), dotted(data));
    return data;
  }

  /**
   * The registry's statement that it has never bound a service (§8.1).
   * @param {Target} target
   * @param {Uint8Array} statement
   * @param {number} now in seconds
   */
  neverBound(target, statement, now) {
    const data = this.#data(statement, DOCUMENT);
    check(data, {record: text(/^UNBOUND$/), timestamp: isInteger});
    sameTarget(dotted(target), dotted(data));
    if (Math.abs(data.timestamp - now) > 300) throw new Refusal('timestamp_out_of_window', 'the statement is of another time');
    return data;
  }

  /**
   * The data of an envelope that a trusted key signed (§7.2). key_id is but a hint, and a few keys
   * need none.
   * @param {Uint8Array} bytes
   */
  #data(bytes, limits = MESSAGE) {
    const {data, signature} = open(bytes, limits);
    const signed = canonical(data);
    if (!this.publicKeys.some((key) => verifies(key, signed, signature))) {
      throw new Refusal('untrusted_signature', 'no trusted registry key made this signature');
    }
    if (data.origin !== this.origin) throw new Refusal('wrong_origin', "the message is another registry's");
    if (!isTarget(data)) throw invalid('app_id" or "service_id');
    return data;
  }
}

/** @typedef {Record<string, (value: any) => boolean>} Forms of members */

/** @type {(pattern: RegExp) => (value: unknown) => boolean} */
const text = (pattern) => (value) => typeof value === 'string' && pattern.test(value);
/** @type {(form: (value: any) => boolean) => (value: unknown) => boolean} */
const optional = (form) => (value) => value === undefined || form(value);
/** @type {(value: unknown) => boolean} */
const absent = (value) => value === undefined;
/** @type {(value: any) => boolean} */
const isSequence = (value) => isInteger(value) && value > 0;
const isNonce = text(/^[A-Za-z0-9_-]{8,64}$/);
const isString = text(/./);

// The members of §7.1, §7.3 and §8.1. Others are ignored: the registry's messages may gain members
// (§3).
const EVENT = {
  grace_period_expiry: isInteger, timestamp: isInteger, nonce: isNonce, sequence: optional(isSequence), end_earlier: absent,
};
const EVENTS = new Map(Object.entries({
  SERVICE_BINDING: {...EVENT, old_public_key: absent, new_public_key: isPublicKey},
  KEY_ROTATION: {
    ...EVENT, old_public_key: isPublicKey, new_public_key: isPublicKey, end_earlier: optional((value) => value === true),
  },
  MASTER_RESET: {...EVENT, old_public_key: isPublicKey, new_public_key: isPublicKey},
  SERVICE_REVOCATION: {...EVENT, old_public_key: isPublicKey, new_public_key: absent},
}));
const RECEIPT = {request_nonce: optional(isNonce), timestamp: isInteger, nonce: isNonce};
/** @type {Map<string, Forms>} */
const RECEIPTS = new Map(Object.entries({
  REQUEST_COMMITTED: {
    ...RECEIPT, event_nonce: isNonce, sequence: isSequence, public_key: optional(isPublicKey),
    grace_period_expiry: isInteger,
  },
  REQUEST_REJECTED: {...RECEIPT, reason: isString, detail: optional(isString), request_hash: optional(isString)},
}));
const RECORD = {
  record: text(/^SERVICE$/), status: text(/^(active|revoked)$/), sequence: isSequence, bound_at: isInteger,
  grace: Array.isArray, propagation: isObject, next_rotation_at: optional(isInteger), timestamp: isInteger,
};

/**
 * @param {Map<string, Forms>} kinds
 * @param {any} event
 */
function kindOf(kinds, event) {
  const forms = kinds.get(event);
  if (!forms) throw new Refusal('unknown_event', 'the message is of no kind that belongs here');
  return forms;
}

/**
 * @param {any} value that must be an object with members of these forms
 * @param {Forms} forms
 */
function check(value, forms) {
  for (const [name, form] of Object.entries(forms)) {
    if (!isObject(value) || !form(value[name])) throw invalid(name);
  }
}

/** @param {string} name of a member */
function invalid(name) {
  return new Refusal('invalid_field', `the member "${name}" is missing, not of its form, or out of place`);
}

/**
 * A message's target is the one in its subject (§4), and a record's the one that was asked about
 * (§8.1).
 * @param {string} outside
 * @param {string} inside
 */
function sameTarget(outside, inside) {
  if (outside !== inside) throw new Refusal('target_mismatch', 'it is signed for another service than it came for');
}
