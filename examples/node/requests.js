// The requests that a client signs (docs/protocol.md §5), and which receipt answers one (§7.3).
/** @import {SigningKey} from './keys.js' */
import {createHash} from 'node:crypto';

import {canonical} from './json.js';
import {newNonce} from './keys.js';

/**
 * A service (§1), by its members' names in every message.
 * @typedef {{app_id: string, service_id: string}} Target
 */

/**
 * The members of an object that was read.
 * @typedef {Record<string, any>} Members
 */

/**
 * A signed request for a new key, ready to be published, and published again as it is.
 * @typedef {{subject: string, nonce: string, publicKey: string, payload: Buffer}} Request
 */

const LABEL = '[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?';
const APP_ID = new RegExp(`^(?=.{1,200}$)${LABEL}(?:\\.${LABEL}){1,15}$`);
const SERVICE_ID = new RegExp(`^${LABEL}$`);

/**
 * Reports whether an object names a service by the forms of §1.
 * @param {Members} names
 */
export function isTarget({app_id, service_id}) {
  return typeof app_id === 'string' && APP_ID.test(app_id) && typeof service_id === 'string' && SERVICE_ID.test(service_id);
}

/**
 * A target as the last tokens of a subject (§4).
 * @param {Members} target
 */
export function dotted({app_id, service_id}) {
  return `${app_id}.${service_id}`;
}

/**
 * Binds a service to its first key (§5.2), at the registry of this origin and, if it is given, at
 * no other.
 * @param {Target} target
 * @param {{origin?: string, masterKey: SigningKey, newKey: SigningKey, timestamp?: number, nonce?: string}} by
 */
export function bindingRequest(target, {origin, masterKey, newKey, timestamp = now(), nonce = newNonce()}) {
  const data = {...target, public_key: newKey.publicKey, timestamp, nonce, context: 'service_binding', ...named(origin)};
  return request(`omi.v1.requests.binding.${dotted(target)}`, data, masterKey, newKey);
}

/**
 * Gives a service a new key (§5.1), at the registry of this origin and, if it is given, at no
 * other. The grace period is the registry's own.
 * @param {Target} target
 * @param {{origin?: string, currentKey: SigningKey, newKey: SigningKey, timestamp?: number, nonce?: string}} by
 */
export function rotationRequest(target, {origin, currentKey, newKey, timestamp = now(), nonce = newNonce()}) {
  const data = {
    ...target, new_public_key: newKey.publicKey, rotation_timestamp: timestamp, nonce, context: 'key_rotation', ...named(origin),
  };
  return request(`omi.v1.requests.rotation.${dotted(target)}`, data, currentKey, newKey);
}

/**
 * The member that names a registry. What is optional is left out (§3).
 * @param {string} [origin]
 */
function named(origin) {
  return origin ? {origin} : {};
}

/** Whole seconds (§1). */
function now() {
  return Math.floor(Date.now() / 1000);
}

/**
 * Puts data into its envelope (§3). What is signed is data's canonical form; the text around it may
 * be any.
 * @param {string} subject
 * @param {{nonce: string}} data
 * @param {SigningKey} signer
 * @param {SigningKey} newKey
 * @returns {Request}
 */
function request(subject, data, signer, newKey) {
  const bytes = canonical(data);
  const envelope = {version: '1.0', data, signature: signer.sign(bytes), new_key_signature: newKey.sign(bytes)};
  return {subject, nonce: data.nonce, publicKey: newKey.publicKey, payload: Buffer.from(JSON.stringify(envelope))};
}

/**
 * Reports whether a receipt answers a request (§7.3). Anyone can send a request with our nonce. So
 * a commit counts only if it is of the key that we asked for, and a refusal only if it is of our
 * very bytes.
 * @param {Members} receipt
 * @param {Request} sent
 */
export function answers(receipt, {nonce, publicKey, payload}) {
  if (receipt.request_nonce !== nonce) return false;
  if (receipt.event === 'REQUEST_COMMITTED') return receipt.public_key === publicKey;
  return receipt.request_hash === hashOf(payload);
}

/**
 * A message's bytes by their hash (§7.3).
 * @param {Uint8Array} payload
 */
export function hashOf(payload) {
  return createHash('sha256').update(payload).digest('base64url');
}
